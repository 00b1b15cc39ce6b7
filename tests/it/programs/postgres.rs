//! PostgreSQL on the mount: it is killed at its work, and what it had committed is there.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::bounded;
use crate::support::{
    Mount, Need, Scratch, USER, as_user, is_root, output, require, run, sbin, set_owner, soak,
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// A server's data and the folder of its socket; it runs as an ordinary user, as it wants to.
struct Cluster {
    data: PathBuf,
    /// Beside the mount: names of sockets are short.
    beside: PathBuf,
}

/// A running server; killed with all its processes on drop.
struct Server {
    child: Child,
}

/// As the ordinary user that the server is.
fn user(command: &mut Command) -> &mut Command {
    command.env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
    if is_root() {
        as_user(command, USER, USER);
    }
    command
}

/// A process and all that it began, the first first.
fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    found
}

impl Server {
    /// kill -9 of every process of it.
    fn kill(&mut self) {
        let pids = family(self.child.id());
        for &pid in &pids {
            if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
        wait_until("the server's processes are gone", PATIENCE, || {
            let gone = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_err();
            pids.iter().all(|&pid| gone(pid) || !is_postgres(pid))
        });
    }

    /// A fast shutdown, which writes all and ends well.
    #[track_caller]
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("kill");
        assert!(self.child.wait().expect("wait").success());
    }
}

/// A number may be given again, to another program, and a zombie has no program at all.
fn is_postgres(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("postgres"))
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

impl Cluster {
    fn program(name: &str) -> Command {
        // Limits what hangs, also a client of a server that hangs.
        bounded(sbin(name))
    }

    /// With checksums of all pages.
    fn init(&self) {
        run(user(
            Self::program("initdb")
                .args(["--username=postgres", "--auth=trust", "--no-sync"])
                .args(["--data-checksums", "--encoding=UTF8", "--pgdata"])
                .arg(&self.data),
        ));
    }

    #[track_caller]
    fn start(&self) -> Server {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.beside.join("log"))
            .expect("the log");
        let mut command = Command::new(sbin("postgres"));
        command.arg("-D").arg(&self.data);
        let sockets = format!("unix_socket_directories={}", self.beside.display());
        for setting in [
            "listen_addresses=",
            &sockets,
            "fsync=on",
            "shared_buffers=8MB",
            "max_wal_size=32MB",
            "checkpoint_timeout=30s",
        ] {
            command.args(["-c", setting]);
        }
        let child = user(&mut command)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("postgres");
        let mut server = Server { child };
        wait_until("the server answers", PATIENCE, || {
            if let Ok(Some(status)) = server.child.try_wait() {
                let log = fs::read_to_string(self.beside.join("log")).unwrap_or_default();
                panic!("the server ended ({status}): {log}");
            }
            output(&mut self.client("psql", &["-c", "select 1", "postgres"]))
                .status
                .success()
        });
        server
    }

    fn client(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Self::program(name);
        command.arg("--host").arg(&self.beside);
        command.arg("--username=postgres").args(arguments);
        user(&mut command);
        command
    }

    #[track_caller]
    fn ask(&self, question: &str) -> Vec<i64> {
        let said = run(&mut self.client("psql", &["-AtX", "-F", " ", "-c", question, "postgres"]));
        said.split_whitespace()
            .map(|word| word.parse().unwrap_or_else(|e| panic!("{said:?}: {e}")))
            .collect()
    }

    /// How many transactions of pgbench have been committed.
    #[track_caller]
    fn committed(&self) -> i64 {
        self.ask("SELECT count(*) FROM pgbench_history")[0]
    }

    /// Each transaction adds one number to an account, a teller and a branch, and writes it down.
    #[track_caller]
    fn assert_whole(&self) {
        let sums = self.ask(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts),
                (SELECT sum(tbalance) FROM pgbench_tellers),
                (SELECT sum(bbalance) FROM pgbench_branches),
                (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
                (SELECT count(*) FROM pgbench_accounts)",
        );
        assert_eq!(sums[4], 100_000, "accounts");
        assert!(sums[..4].iter().all(|&sum| sum == sums[0]), "{sums:?}");
        let arguments = ["--install-missing", "--heapallindexed", "--parent-check"];
        let mut amcheck = self.client("pg_amcheck", &arguments);
        assert_eq!(run(amcheck.arg("postgres")), "", "amcheck");
    }

    /// Kills the server when pgbench has committed some more; returns the one that recovered.
    fn die_at_work(&self, mut server: Server) -> Server {
        let before = self.committed();
        let load = ["-n", "-c", "4", "-j", "2", "-T", "3000", "postgres"];
        let mut load = self.client("pgbench", &load);
        load.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut load = load.spawn().expect("pgbench");
        let mut seen = 0;
        wait_until("pgbench commits", PATIENCE, || {
            seen = self.committed();
            seen > before + 100
        });
        server.kill();
        assert!(!load.wait().expect("wait").success(), "its server is dead");
        let server = self.start();
        assert!(self.committed() >= seen, "committed transactions are gone");
        self.assert_whole();
        server
    }
}

#[test]
fn postgres_recovers_what_it_had_committed() {
    let tools = [
        "postgres",
        "initdb",
        "pgbench",
        "pg_amcheck",
        "pg_checksums",
    ];
    let mut needs = vec![Need::Fuse];
    needs.extend(tools.map(Need::Tool));
    if !require(&needs) {
        return;
    }
    let scratch = Scratch::new();
    let (source, beside) = (scratch.dir("source"), scratch.dir("beside"));
    let mut mount = Mount::of(&source);
    if is_root() {
        set_owner(&source, USER, USER);
        set_owner(&beside, USER, USER);
        mount = mount.opt("allow_other");
    }
    let mount = mount.start();
    let mut cluster = Cluster {
        data: mount.path().join("data"),
        beside,
    };
    cluster.init();
    let mut server = cluster.start();
    run(&mut cluster.client("pgbench", &["-i", "-q", "-s", "1", "postgres"]));
    for _ in 0..soak(10) {
        server = cluster.die_at_work(server);
    }
    server.stop();
    drop(mount);
    // What is in the source is whole without us.
    cluster.data = source.join("data");
    run(user(
        Cluster::program("pg_checksums")
            .arg("--check")
            .arg(&cluster.data),
    ));
    let server = cluster.start();
    cluster.assert_whole();
    server.stop();
}
