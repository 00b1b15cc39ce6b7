//! What copies cost in memory, their own and that of others.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Sizes;
use crate::common::touch;
use crate::competitors::{Competitor, historic};
use crate::figures::Verdicts;
use crate::stage::{Stage, warm};

/// A copy's memory, and the daemon's beyond its window budget.
const MOST: u64 = 64 << 20;
/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// The most memory that each has resident while it copies one file.
pub(crate) fn peaks(stage: &Stage, sizes: &Sizes, verdicts: &mut Verdicts) {
    stage.make_file("big", sizes.file);
    println!("\nmemory: one file of {} MiB", sizes.file >> 20);
    let to = stage.new_name();
    let (from_path, to_path) = (stage.source.join("big"), stage.source.join(&to));
    let child = quiet(historic(&from_path, &to_path))
        .spawn()
        .expect("start");
    println!("  mcopy2, 1 GiB: {} MiB resident", peak(child) >> 20);
    stage.drop_copy(&to);
    let engine = Competitor::corfs("engine", &["--reflink=never"]);
    let to = stage.new_name();
    let child = engine.start(stage, "big", &to).expect("a process");
    let found = peak(child);
    stage.drop_copy(&to);
    verdicts.at_most(
        &stage.kind,
        "engine resident (MiB)",
        found >> 20,
        MOST >> 20,
    );
}

/// A copy that is larger than what one wants to see in the page cache.
pub(crate) fn big(stage: &Stage, sizes: &Sizes, verdicts: &mut Verdicts) {
    stage.make_file("huge", sizes.big);
    println!("\nbig: {} MiB by .copy", sizes.big >> 20);
    let server = stage.config("server_pid");
    let budget: u64 = stage.config("window_budget").parse().expect("a number");
    let bystander = stage.source.join("bystander");
    crate::common::make_file(&bystander, sizes.big / 16);
    for (options, name) in [
        ("--reflink=never", "cached"),
        ("--reflink=never --direct", "direct"),
    ] {
        // Before: where memory is full this evicts by itself.
        touch(sizes.big.min(meminfo("MemAvailable") / 2));
        warm(&bystander);
        let (kept, cached) = (resident(&bystander), meminfo("Cached"));
        let to = stage.new_name();
        let line = Competitor::line(".copy", options);
        let mut child = line.start(stage, "huge", &to).expect("a process");
        let mut most = 0;
        while child.try_wait().expect("wait").is_none() {
            most = most.max(status(&server, "VmRSS:"));
            std::thread::sleep(LOOK);
        }
        let grown = meminfo("Cached").saturating_sub(cached);
        let ended = child.wait().expect("wait");
        assert!(ended.success(), "the copy failed: {ended}");
        let (now, whole) = (
            resident(&bystander),
            fs::metadata(&bystander).expect("stat").len(),
        );
        println!(
            "  {name}: page cache grew by {} MiB; of another's {} MiB {} were cached before, {} after",
            grown >> 20,
            whole >> 20,
            kept >> 20,
            now >> 20
        );
        let what = format!("daemon resident, {name} (MiB)");
        verdicts.at_most(&stage.kind, &what, most >> 20, (budget + MOST) >> 20);
        if name == "direct" {
            let lost = kept.saturating_sub(now);
            verdicts.at_most(
                &stage.kind,
                "another's cache evicted, direct (MiB)",
                lost >> 20,
                1,
            );
        }
        stage.drop_copy(&to);
    }
    stage.drop_copy("huge");
    stage.drop_copy("bystander");
}

/// The most that a process has had resident, once it has ended. The kernel keeps the highest mark,
/// so looking now and then loses only the last moments.
fn peak(mut child: Child) -> u64 {
    let pid = child.id().to_string();
    let mut most = 0;
    while child.try_wait().expect("wait").is_none() {
        most = most.max(status(&pid, "VmHWM:"));
        std::thread::sleep(LOOK);
    }
    let ended = child.wait().expect("wait");
    assert!(ended.success(), "the copy failed: {ended}");
    most
}

fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A line of `/proc/PID/status`, in bytes; 0 for a process that has ended.
fn status(pid: &str, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kibibytes(&text, key)
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(key: &str) -> u64 {
    kibibytes(
        &fs::read_to_string("/proc/meminfo").expect("meminfo"),
        &format!("{key}:"),
    )
}

fn kibibytes(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) << 10
}

/// How much of a file is in the page cache, by util-linux's fincore; 0 where that is missing.
fn resident(path: &Path) -> u64 {
    let asked = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .arg(path)
        .output();
    let text = asked.map_or_else(
        |_| String::new(),
        |out| String::from_utf8_lossy(&out.stdout).into_owned(),
    );
    text.trim().parse().unwrap_or(0)
}
