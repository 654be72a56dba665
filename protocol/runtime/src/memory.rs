//! Memory that this process may use: what its container is allowed, else what the machine has.

use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
const MIB: u64 = 1 << 20;
/// Version 1 of control groups writes a number near the greatest where there is no limit.
const UNLIMITED: u64 = 1 << 60;

/// The least of the container's limits and the machine's memory; `None` where nothing tells.
#[must_use]
pub fn allowed_bytes() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let mut limits: Vec<u64> = limit_files(&own).iter().filter_map(|file| limit(&read(file)?)).collect();
    limits.extend(read(Path::new("/proc/meminfo")).and_then(|text| total(&text)));
    limits.into_iter().min()
}

/// Bytes in MiB, for people.
#[must_use]
pub const fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(MIB)
}

/// Where limits may stand: a container sees its own at the root of the mount; elsewhere every group above counts too.
fn limit_files(own: &str) -> Vec<PathBuf> {
    let group = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = Path::new(CGROUPS);
    let mut files: Vec<PathBuf> =
        Path::new(group).ancestors().map(|above| root.join(above).join("memory.max")).collect();
    files.push(root.join("memory/memory.limit_in_bytes"));
    files
}

/// A limit as either version writes it; `max` and a huge number are none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes < UNLIMITED)
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_both_versions_are_read() {
        assert_eq!(limit("536870912\n"), Some(512 * MIB));
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None, "version 1 without a limit");
        assert_eq!(total("MemTotal:       24601888 kB\nMemFree: 1 kB\n"), Some(24_601_888 * 1024));
        assert_eq!(total(""), None);
    }

    #[test]
    fn every_group_above_counts() {
        let names = |own| limit_files(own).iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        let container = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        assert_eq!(names("0::/\n"), container);
        assert_eq!(names(""), container);
        let service = names("0::/system.slice/worker.service\n");
        assert_eq!(service[0], "/sys/fs/cgroup/system.slice/worker.service/memory.max");
        assert_eq!(service[1], "/sys/fs/cgroup/system.slice/memory.max");
        assert_eq!(service[2..], container);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(allowed_bytes().is_none_or(|bytes| bytes > MIB));
        assert_eq!((mib(0), mib(1), mib(3 * MIB)), (0, 1, 3));
    }
}
