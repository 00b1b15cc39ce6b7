//! Where it is measured: processor, kernel, file system, load.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::outcome::Machine;

/// What can be told of this machine, and of the file system that `folder` is on.
pub(super) fn describe(folder: &Path) -> Machine {
    Machine {
        kernel: kernel(),
        processor: processor(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory: meminfo("MemTotal"),
        file_system: file_system(folder),
        load: [load(), load()],
        corfs: env!("CARGO_PKG_VERSION").into(),
    }
}

fn kernel() -> String {
    let name = rustix::system::uname();
    let word = |word: &std::ffi::CStr| word.to_string_lossy().into_owned();
    [name.sysname(), name.release(), name.machine()]
        .map(word)
        .join(" ")
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = |line: &str| {
        Some(
            line.strip_prefix("model name")?
                .split_once(':')?
                .1
                .trim()
                .into(),
        )
    };
    text.lines()
        .find_map(named)
        .unwrap_or_else(|| "unknown".into())
}

/// A line of `/proc/meminfo`, in bytes; 0 where there is none.
pub(super) fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = |line: &str| {
        let number = line.strip_prefix(key)?.strip_prefix(':')?;
        number.split_whitespace().next()?.parse::<u64>().ok()
    };
    text.lines().find_map(line).unwrap_or(0) << 10
}

/// The load of the last minute.
pub(super) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.unwrap_or(0.0)
}

/// Kind, device and options of the mount, from `/proc/self/mountinfo`.
fn file_system(folder: &Path) -> String {
    let Ok(stat) = fs::metadata(folder) else {
        return "unknown".into();
    };
    let device = format!(
        "{}:{}",
        rustix::fs::major(stat.dev()),
        rustix::fs::minor(stat.dev())
    );
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of = |line: &str| -> Option<String> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        (left.nth(2)? == device).then_some(())?;
        let options = left.nth(2)?;
        let mut right = right.split(' ');
        let (kind, source) = (right.next()?, right.next()?);
        Some(format!("{kind} on {source} ({options})"))
    };
    // A btrfs subvolume has a device that no mount names.
    table
        .lines()
        .find_map(of)
        .unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_told() {
        let machine = describe(Path::new("/proc"));
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
        assert!(machine.memory > 1 << 20);
        assert!(machine.processors >= 1);
        assert!(machine.file_system.starts_with("proc on "), "{machine:?}");
    }
}
