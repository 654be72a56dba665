//! CTranslate2's `model.bin`: named variables, one after the other.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

/// The layout that is read.
const VERSION: u32 = 6;
/// No model has a tenth of it.
const VARIABLES_MAX: u32 = 1 << 16;
/// Most sizes of one variable.
const RANK_MAX: u8 = 8;
/// Longest name, its end mark included.
const NAME_BYTES_MAX: u16 = 512;

/// Type of a variable's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// IEEE single.
    F32,
    /// 8 bits.
    I8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Kind {
    fn coded(code: u8) -> Result<Kind> {
        let kinds = [Kind::F32, Kind::I8, Kind::I16, Kind::I32, Kind::F16, Kind::Bf16];
        kinds.get(usize::from(code)).copied().with_context(|| format!("its type {code} is unknown"))
    }

    /// Bytes of one number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Kind::I8 => 1,
            Kind::F16 | Kind::Bf16 | Kind::I16 => 2,
            Kind::F32 | Kind::I32 => 4,
        }
    }
}

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable<'a> {
    /// Its sizes; none for a single number.
    pub(crate) shape: Vec<usize>,
    /// Type of its numbers.
    pub(crate) kind: Kind,
    /// Little-endian, the last size the fastest.
    pub(crate) data: &'a [u8],
}

/// A whole model; its aliases, which only repeat, are passed over.
#[derive(Clone, Debug)]
pub(crate) struct Model<'a> {
    /// What kind of model it is: `WhisperSpec`.
    pub(crate) spec: &'a str,
    /// Revision of that kind.
    pub(crate) revision: u32,
    /// By name.
    pub(crate) variables: BTreeMap<&'a str, Variable<'a>>,
}

/// Reads a model; its numbers stay where they are.
pub(crate) fn read(file: &[u8]) -> Result<Model<'_>> {
    let mut reader = Reader { rest: file };
    let version = reader.u32()?;
    ensure!(version == VERSION, "it is of CTranslate2's version {version}, not {VERSION}");
    let (spec, revision) = (reader.text()?, reader.u32()?);
    let count = reader.u32()?;
    ensure!(count <= VARIABLES_MAX, "it has {count} variables, {VARIABLES_MAX} at most are read");
    let mut variables = BTreeMap::new();
    for _ in 0..count {
        let name = reader.text()?;
        let variable = reader.variable().with_context(|| format!("variable {name}"))?;
        ensure!(variables.insert(name, variable).is_none(), "variable {name} is there twice");
    }
    let aliases = reader.u32()?;
    ensure!(aliases <= VARIABLES_MAX, "it has {aliases} aliases, {VARIABLES_MAX} at most are read");
    for _ in 0..aliases {
        let (alias, name) = (reader.text()?, reader.text()?);
        ensure!(variables.contains_key(name), "{alias} is an alias of {name}, which is not there");
    }
    ensure!(reader.rest.is_empty(), "{} bytes follow its end", reader.rest.len());
    Ok(Model { spec, revision, variables })
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn slice(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (slice, rest) = self.rest.split_at_checked(bytes).context("it ends early")?;
        self.rest = rest;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.slice(N)?.try_into().expect("as long as asked for"))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    /// Its length with the end mark, the bytes, the mark.
    fn text(&mut self) -> Result<&'a str> {
        let length = u16::from_le_bytes(self.take()?);
        ensure!(length <= NAME_BYTES_MAX, "a name has {length} bytes, {NAME_BYTES_MAX} at most are read");
        let Some((0, text)) = self.slice(usize::from(length))?.split_last() else { bail!("a name has no end mark") };
        std::str::from_utf8(text).context("a name is no UTF-8")
    }

    fn variable(&mut self) -> Result<Variable<'a>> {
        let [rank] = self.take()?;
        ensure!(rank <= RANK_MAX, "it has {rank} sizes, {RANK_MAX} at most are read");
        let shape: Vec<usize> = (0..rank).map(|_| Ok(usize::try_from(self.u32()?)?)).collect::<Result<_>>()?;
        let [code] = self.take()?;
        let (kind, stored) = (Kind::coded(code)?, self.u32()?);
        let bytes = shape.iter().try_fold(kind.bytes(), |product, &size| product.checked_mul(size));
        ensure!(bytes == usize::try_from(stored).ok(), "it has {stored} bytes, which its shape {shape:?} contradicts");
        Ok(Variable { shape, kind, data: self.slice(usize::try_from(stored)?)? })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u16 + 1).to_le_bytes(), text.as_bytes(), b"\0"].concat()
    }

    /// A variable of a file of a test: name, shape, code of its type, its bytes.
    pub(crate) type Told<'a> = (&'a str, &'a [u32], u8, &'a [u8]);

    /// A whole file.
    pub(crate) fn file(spec: &str, told: &[Told<'_>]) -> Vec<u8> {
        let u32 = |number: usize| (number as u32).to_le_bytes();
        let mut file = [u32(6).to_vec(), text(spec), u32(3).to_vec(), u32(told.len()).to_vec()].concat();
        for (name, shape, code, data) in told {
            file.extend([text(name), vec![shape.len() as u8]].concat());
            shape.iter().for_each(|size| file.extend(size.to_le_bytes()));
            file.push(*code);
            file.extend(u32(data.len()));
            file.extend(*data);
        }
        file.extend(u32(0));
        file
    }

    const SMALL: [Told<'static>; 2] = [("a/b", &[2, 1], 4, &[1, 2, 3, 4]), ("n", &[], 2, &[6, 0])];

    #[test]
    fn variables_are_read_where_they_lie() {
        let file = file("WhisperSpec", &SMALL);
        let model = read(&file).unwrap();
        assert_eq!((model.spec, model.revision, model.variables.len()), ("WhisperSpec", 3, 2));
        assert_eq!(model.variables["a/b"], Variable { shape: vec![2, 1], kind: Kind::F16, data: &[1, 2, 3, 4] });
        assert_eq!(model.variables["n"], Variable { shape: vec![], kind: Kind::I16, data: &[6, 0] });
    }

    #[test]
    fn what_lies_or_is_cut_is_refused() {
        let whole = file("S", &SMALL);
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "cut at {end}");
        }
        let refused = |told: &[Told<'_>], words: &str| {
            let error = format!("{:#}", read(&file("S", told)).unwrap_err());
            assert!(error.contains(words), "{error}");
        };
        refused(&[("a", &[u32::MAX; 8], 0, &[])], "contradicts");
        refused(&[("a", &[1; 9], 0, &[0; 4])], "9 sizes");
        refused(&[("a", &[1], 9, &[0])], "type 9");
        refused(&[SMALL[0], SMALL[0]], "twice");
        refused(&[("x".repeat(600).as_str(), &[], 1, &[0])], "601 bytes");
        assert!(format!("{:#}", read(&[whole, vec![0]].concat()).unwrap_err()).contains("1 bytes follow"));
    }

    #[test]
    fn no_change_of_bytes_does_harm() {
        let whole = file("WhisperSpec", &SMALL);
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, whole[at].wrapping_add(1)] {
                let mut changed = whole.clone();
                changed[at] = value;
                let _ = read(&changed);
                changed.insert(at, value);
                let _ = read(&changed);
            }
        }
    }
}
