//! Where a work is done: a directory, a corfs mount, a peer's mount; each cleaned up when it goes.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Failure;
use super::child::{self, Trouble, Wait};
use super::mounted::{HURRY, Mounted, PATIENCE};
use super::pages::size;
use super::probe::{Chore, Probe};
use super::progress::Stop;
use super::stage::{Kind, Stage, Subject, has_mounts, make_dir};
use crate::copy::language::quote;
use crate::observe::text;

/// What stands in the options of a mount for a folder that is its cache.
pub(super) const CACHE: &str = "{CACHE}";

/// One who is measured, at work.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) subject: Subject,
    source: PathBuf,
    mounted: Option<Mounted>,
    stage: Option<Stage>,
    point: PathBuf,
    stop: Stop,
    /// How long a work may take.
    limit: Duration,
    /// Why it could not be mounted, or was given up: it is left out from then on.
    absent: Option<String>,
    /// How many opens this mount has passed through, when one looked last.
    passed: f64,
}

impl Place {
    /// `number` is no other place's. Nothing is mounted yet: some file systems never look again at
    /// what they have listed once, so that files are to be there before.
    pub(super) fn new(
        subject: Subject,
        home: &Stage,
        number: usize,
        limit: Duration,
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let stage = match &subject.kind {
            Kind::Elsewhere(path) => Some(Stage::new(path)?),
            _ => None,
        };
        let source = stage.as_ref().unwrap_or(home).source();
        let point = home.mountpoint(number);
        let place = Self {
            subject,
            source,
            mounted: None,
            stage,
            point,
            stop: stop.clone(),
            limit,
            absent: None,
            passed: 0.0,
        };
        if !place.is_plain() {
            make_dir(&place.point)?;
        }
        Ok(place)
    }

    /// Fails with why it could not be mounted, or does not answer.
    pub(super) fn is_there(&self) -> Result<(), String> {
        self.absent.clone().map_or(Ok(()), Err)
    }

    /// Nothing is mounted for it.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.subject.kind, Kind::Native | Kind::Elsewhere(_))
    }

    /// It has files of its own, not those of the stage.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.stage.is_some()
    }

    /// Where its work is done.
    pub(super) fn root(&self) -> &Path {
        if self.is_plain() {
            &self.source
        } else {
            &self.point
        }
    }

    /// What it shows, on its own file system.
    pub(super) fn source(&self) -> &Path {
        &self.source
    }

    /// The command that mounts it, as one types it.
    pub(super) fn command(&self) -> String {
        let word = |path: &Path| quote(path.as_os_str().as_bytes());
        let (source, point) = (word(&self.source), word(&self.point));
        match &self.subject.kind {
            Kind::Native | Kind::Elsewhere(_) => format!("in {source}"),
            Kind::Corfs(options) if options.is_empty() => format!("corfs -f {source} {point}"),
            Kind::Corfs(options) => {
                let options = quote(self.with_cache(options).as_bytes());
                format!("corfs -f -o {options} {source} {point}")
            }
            Kind::Peer(command) => filled(command, &self.source, &self.point),
        }
    }

    /// It is a mount of corfs.
    pub(super) fn is_corfs(&self) -> bool {
        matches!(self.subject.kind, Kind::Corfs(_))
    }

    /// A text that a mount of corfs tells of itself.
    fn told(&self, name: &str) -> Result<String, Trouble> {
        let chore = Chore::Text(self.point.join(".corfs").join(name));
        let wait = Wait::within(PATIENCE, &self.stop);
        let said = child::ask(&Probe::Chore(chore), &wait)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Fails where the options ask for passthrough, and no file has been opened in that way since
    /// one looked last: corfs serves it by itself then, and that is another's measurement.
    pub(super) fn has_passed_through(&mut self) -> Result<(), Trouble> {
        let always = |options: &str| options.split(',').any(|word| word == "passthrough=always");
        match &self.subject.kind {
            Kind::Corfs(options) if always(options) => {}
            _ => return Ok(()),
        }
        let (opens, state) = passed(&self.told("stats")?);
        if opens > std::mem::replace(&mut self.passed, opens) {
            return Ok(());
        }
        Err(Trouble::Failed(format!(
            "passthrough=always, but the kernel was handed no file of this work (passthrough is \
             {state}; it takes root, Linux 6.9 and a file system that allows it)"
        )))
    }

    /// The process whose memory is the mount's; none where nothing is mounted.
    pub(super) fn server(&self) -> Result<Option<u32>, String> {
        let Some(mounted) = &self.mounted else {
            return Ok(None);
        };
        let server = if self.is_corfs() {
            let config = self.told("config").map_err(Trouble::words)?;
            let pid = |line: &str| line.strip_prefix("server_pid=")?.parse().ok();
            config.lines().find_map(pid)
        } else if child::has_ended(&mounted.child).unwrap_or(true) {
            // It is in the background, or there is none.
            None
        } else {
            last_of_line(mounted.child.id())
        };
        let unknown = "the process that serves it is not known";
        server.map(Some).ok_or_else(|| unknown.into())
    }

    /// Unmounts and mounts anew: what the kernel and the daemon remembered is gone.
    pub(super) fn remount(&mut self) -> Result<(), String> {
        if !self.is_plain() {
            self.mounted = None;
            self.mount();
        }
        self.is_there()
    }

    /// Unmounts until somebody works here again.
    pub(super) fn rest(&mut self) -> Result<(), String> {
        self.mounted = None;
        let words = |why: &dyn std::fmt::Display| {
            format!("{} can't be unmounted before: {why}", self.subject.name)
        };
        match has_mounts(&self.point) {
            Ok(false) => Ok(()),
            Ok(true) => Err(words(&"it is still mounted")),
            Err(error) => Err(words(&error)),
        }
    }

    /// Mounts again what [rests](Self::rest).
    pub(super) fn wake(&mut self) -> Result<(), String> {
        if !self.is_plain() && self.mounted.is_none() && self.absent.is_none() {
            self.mount();
        }
        self.is_there()
    }

    /// Mounts what is to be mounted. Who does not mount is a place too, one that is not
    /// [there](Self::is_there).
    pub(super) fn mount(&mut self) {
        self.passed = 0.0;
        self.absent = self.try_mount().err();
        if self.absent.is_some() {
            // It must not come later, when nobody looks.
            self.mounted = None;
        }
    }

    fn try_mount(&mut self) -> Result<(), String> {
        let in_words = |error: io::Error| error.to_string();
        if has_mounts(&self.point).map_err(in_words)? {
            return Err("what was mounted before can't be unmounted".into());
        }
        let Some(mut command) = self.starts().map_err(in_words)? else {
            return Ok(());
        };
        let said = fs::File::create(self.log()).map_err(in_words)?;
        let device = fs::metadata(&self.source).map_err(in_words)?.dev();
        // A group of its own: Ctrl-C is for us, who then unmount.
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .process_group(0)
            .spawn()
            .map_err(in_words)?;
        self.mounted = Some(Mounted {
            point: self.point.clone(),
            child,
            kind: self.subject.kind.clone(),
            up: false,
            hung: false,
            device: (rustix::fs::major(device), rustix::fs::minor(device)),
            stop: self.stop.clone(),
        });
        self.await_mount()
    }

    /// What starts the process that mounts, where there is one.
    fn starts(&self) -> io::Result<Option<Command>> {
        Ok(match &self.subject.kind {
            Kind::Native | Kind::Elsewhere(_) => None,
            Kind::Corfs(options) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("-f").args([&self.source, &self.point]);
                if !options.is_empty() {
                    command.args(["-o", &self.with_cache(options)]);
                }
                Some(command)
            }
            Kind::Peer(words) => {
                let mut command = Command::new("sh");
                command.args(["-c", &filled(words, &self.source, &self.point)]);
                Some(command)
            }
        })
    }

    /// The words for `-o`.
    fn with_cache(&self, options: &str) -> String {
        options.replace(CACHE, &option_value(&self.cache()))
    }

    /// The folder of its cache, beside its source and its mountpoint; there is none without a cache
    /// of ours.
    pub(super) fn cache(&self) -> PathBuf {
        self.point.with_extension("cache")
    }

    /// Has the cache hold all of the source, if it has one of ours: whoever reads finds it there.
    /// Then it is mounted anew, for what is stored to be written out.
    pub(super) fn fill_cache(&mut self) -> Result<(), Failure> {
        let Kind::Corfs(options) = &self.subject.kind else {
            return Ok(());
        };
        if !options.contains(CACHE) || self.absent.is_some() {
            return Ok(());
        }
        let chore = Chore::Warm(self.point.clone());
        let wait = Wait::within(self.limit, &self.stop);
        if let Err(trouble) = child::ask(&Probe::Chore(chore), &wait) {
            self.stop.check()?;
            self.doubt(&trouble);
            self.absent = Some(format!(
                "its cache can't be filled: {}",
                trouble.words_of_limit()
            ));
            return Ok(());
        }
        if self.remount().is_ok() {
            let (held, all) = (self.held().unwrap_or(0), size(&self.source));
            self.absent = (held < all).then(|| {
                format!(
                    "its cache has {held} of {all} bytes; is there room (cache_size, cache_free)?"
                )
            });
        }
        Ok(())
    }

    /// The bytes that its cache holds.
    fn held(&self) -> Option<u64> {
        let mut command = Command::new(std::env::current_exe().ok()?);
        command
            .args(["cache", "status", "--json"])
            .arg(self.cache());
        let said = command.stdin(Stdio::null()).output().ok()?.stdout;
        let stored = |line: &[u8]| {
            let line: serde_json::Value = serde_json::from_slice(line).ok()?;
            line["stored_bytes"].as_u64()
        };
        Some(said.split(|&byte| byte == b'\n').filter_map(stored).sum())
    }

    /// Where it says why it does not mount.
    fn log(&self) -> PathBuf {
        self.point.with_extension("log")
    }

    fn await_mount(&mut self) -> Result<(), String> {
        let log = self.log();
        let wait = Wait::within(PATIENCE, &self.stop);
        let look = Probe::Chore(Chore::Look(self.point.clone()));
        while let Some(mounted) = &mut self.mounted {
            // It may be mounted before it answers.
            if has_mounts(&self.point).map_err(|error| error.to_string())? {
                match child::ask(&look, &wait) {
                    Ok(_) => {
                        mounted.up = true;
                        break;
                    }
                    Err(Trouble::Failed(_)) => {}
                    Err(Trouble::Stuck(..)) => mounted.hung = true,
                    Err(Trouble::Late(_)) => mounted.hung = !self.stop.asked(),
                }
            }
            // A peer may go to the background: its command then ends well.
            if let Ok(Some(status)) = mounted.child.try_wait()
                && !status.success()
            {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing");
                return Err(format!("{status}; {last}"));
            }
            self.stop.check().map_err(|stopped| stopped.0)?;
            if wait.over().is_some() {
                let seconds = PATIENCE.as_secs();
                return Err(match mounted.hung {
                    true => format!("it is mounted, but did not answer within {seconds} s"),
                    false => format!("nothing was mounted within {seconds} s"),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Somebody had to be given up who worked here: it may be that nobody gets an answer any more.
    /// Then it is ended and left out, so that not each of its works waits in vain.
    pub(super) fn doubt(&mut self, trouble: &Trouble) {
        if self.mounted.is_none() {
            return;
        }
        let hangs = match trouble {
            Trouble::Failed(_) => false,
            // Who was stopped need not have waited for the mount; who does not end may wait for the
            // disk.
            Trouble::Late(_) | Trouble::Stuck(..) => !self.stop.asked() && !self.answers(),
        };
        if hangs {
            self.leave_out("it does not answer any more, and was ended");
        }
    }

    /// Ends what is mounted as one that hangs; nobody works here any more.
    pub(super) fn leave_out(&mut self, why: &str) {
        if let Some(mounted) = &mut self.mounted {
            mounted.hung = true;
        }
        self.mounted = None;
        self.absent = Some(why.into());
    }

    fn answers(&self) -> bool {
        let look = Probe::Chore(Chore::Look(self.point.clone()));
        let said = child::ask(&look, &Wait::within(HURRY, &self.stop));
        !matches!(said, Err(Trouble::Late(_) | Trouble::Stuck(..)))
    }
}

/// How many opens the kernel was handed, by the text of a mount's statistics, and whether it takes
/// them.
fn passed(metrics: &str) -> (f64, String) {
    let samples = text::parse(metrics);
    let label = |sample: &text::Sample, key: &str| {
        let of = sample.labels.iter().find(|(name, _)| name == key);
        of.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let opens = samples
        .iter()
        .filter(|s| s.name == "corfs_opens_total" && label(s, "mode") == "passthrough")
        .map(|s| s.value)
        .sum();
    let state = samples
        .iter()
        .find(|s| s.name == "corfs_passthrough" && s.value > 0.0);
    (opens, state.map_or("unknown".into(), |s| label(s, "state")))
}

/// The child of the child, and so on: where a shell has started the daemon.
fn last_of_line(mut pid: u32) -> Option<u32> {
    loop {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        match children.split_whitespace().next() {
            Some(child) => pid = child.parse().ok()?,
            None => return Some(pid),
        }
    }
}

fn filled(command: &str, source: &Path, point: &Path) -> String {
    command
        .replace("{SRC}", &shell_word(source))
        .replace("{MNT}", &shell_word(point))
}

/// A path as one word of a shell.
fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A path as the value of an option in a list.
fn option_value(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_filled_in_with_words_of_a_shell() {
        let (source, point) = (Path::new("/a b/it's"), Path::new("/mnt"));
        assert_eq!(
            filled("x -f {SRC} {MNT}", source, point),
            "x -f '/a b/it'\\''s' /mnt"
        );
    }

    #[test]
    fn a_cache_is_filled_in_as_a_word_of_a_list() {
        assert_eq!(option_value(Path::new("/a,b\\c d")), "/a\\,b\\\\c d");
    }

    #[test]
    fn a_command_is_typed_as_it_was_run() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("a b");
        fs::create_dir(&inside).unwrap();
        let home = Stage::new(&inside).unwrap();
        let typed = |options: &str| {
            let subject = Subject {
                name: options.into(),
                kind: Kind::Corfs(options.into()),
            };
            let number = options.len();
            let place = Place::new(subject, &home, number, PATIENCE, &Stop::default()).unwrap();
            let command = place.command();
            let [source, point] = [place.source(), place.root()].map(|p| p.display().to_string());
            (command, source, point)
        };
        let (command, source, point) = typed("");
        assert_eq!(command, format!("corfs -f '{source}' '{point}'"));
        let (command, source, point) = typed("fsname=a b");
        assert_eq!(
            command,
            format!("corfs -f -o 'fsname=a b' '{source}' '{point}'")
        );
    }

    #[test]
    fn what_was_passed_through_is_read_from_the_statistics() {
        let on = "corfs_passthrough{state=\"on\"} 1\ncorfs_passthrough{state=\"not_asked\"} 0\n\
                  corfs_opens_total{mode=\"mmap\"} 7\ncorfs_opens_total{mode=\"passthrough\"} 3\n";
        assert_eq!(passed(on), (3.0, "on".into()));
        let off = "corfs_passthrough{state=\"not_supported\"} 1\n\
                   corfs_opens_total{mode=\"passthrough\"} 0\n";
        assert_eq!(passed(off), (0.0, "not_supported".into()));
        assert_eq!(passed(""), (0.0, "unknown".into()));
    }

    /// Though the work was killed and does not end: it may wait for the disk.
    #[test]
    fn a_mount_is_not_left_out_for_who_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let home = Stage::new(folder.path()).unwrap();
        let stop = Stop::default();
        let kind = Kind::Peer("sleep 1000".into());
        let subject = Subject {
            name: "peer".into(),
            kind: kind.clone(),
        };
        let mut place = Place::new(subject, &home, 1, PATIENCE, &stop).unwrap();
        let mut sleep = Command::new("sleep");
        place.mounted = Some(Mounted {
            point: place.point.clone(),
            child: sleep.arg("1000").process_group(0).spawn().unwrap(),
            kind,
            up: false,
            hung: false,
            device: (0, 0),
            stop: stop.clone(),
        });
        stop.ask();
        let work = Command::new("true").spawn().unwrap();
        place.doubt(&Trouble::Stuck("stopped".into(), work));
        place.is_there().unwrap();
        assert!(place.mounted.is_some());
    }
}
