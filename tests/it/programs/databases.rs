//! sqlite3 on the mount: locks, shared memory of the write-ahead log, recovery after a kill.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::Who;
use crate::support::{Mount, Scratch, run, soak, wait_until};

const SCHEMA: &str = "CREATE TABLE facts(id INTEGER PRIMARY KEY, writer TEXT, words TEXT);
    CREATE INDEX by_writer ON facts(writer, id);";

/// The database that is read through a mapping.
const MAPPED: &str = "mapped.db";

/// Rows that one transaction adds; so their number is always a multiple of this.
const ROWS: u64 = 3;

fn transaction(writer: &str) -> String {
    let row = format!("INSERT INTO facts(writer, words) VALUES('{writer}', hex(randomblob(300)));");
    format!("BEGIN IMMEDIATE; {} COMMIT;\n", row.repeat(ROWS as usize))
}

fn sqlite(who: Who, database: &Path) -> Command {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-bail", "-init", "/dev/null"]);
    command.args(["-cmd", ".timeout 60000"]);
    if database.ends_with(MAPPED) {
        // Reads by mapping the database; `.output` swallows the answer.
        let set = "PRAGMA mmap_size=268435456;";
        command.args(["-cmd", ".output /dev/null", "-cmd", set, "-cmd", ".output"]);
    }
    command.arg(database);
    who.command(&mut command);
    command
}

#[track_caller]
fn ask(who: Who, database: &Path, statement: &str) -> String {
    run(sqlite(who, database).arg(statement)).trim().to_owned()
}

#[track_caller]
fn count(who: Who, database: &Path) -> u64 {
    ask(who, database, "SELECT count(*) FROM facts")
        .parse()
        .expect("a number")
}

#[track_caller]
fn assert_whole(who: Who, database: &Path) {
    assert_eq!(ask(who, database, "PRAGMA integrity_check"), "ok");
    assert_eq!(count(who, database) % ROWS, 0, "a torn transaction");
}

/// A sqlite3 that reads statements from a pipe.
fn writer(who: Who, database: &Path) -> Child {
    sqlite(who, database)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("sqlite3")
}

/// Three writers and a reader at once: nobody's row is lost.
fn writers_share(who: Who, database: &Path) {
    let before = count(who, database);
    let each = soak(400).max(20);
    let statements: Vec<String> = (0..3)
        .map(|index| transaction(&format!("shared {index}")).repeat(each as usize))
        .collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = statements
            .iter()
            .map(|text| {
                scope.spawn(move || {
                    let mut child = writer(who, database);
                    let mut pipe = child.stdin.take().expect("a pipe");
                    pipe.write_all(text.as_bytes()).expect("write to sqlite3");
                    drop(pipe);
                    assert!(child.wait().expect("wait").success(), "a writer failed");
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            assert_eq!(count(who, database) % ROWS, 0, "a torn transaction is seen");
        }
    });
    assert_eq!(count(who, database), before + 3 * each * ROWS);
    assert_whole(who, database);
}

/// A writer is killed at its work: what was seen as committed is still there, and all is whole.
fn writer_dies(who: Who, database: &Path) {
    let before = count(who, database);
    let mut child = writer(who, database);
    let mut pipe = child.stdin.take().expect("a pipe");
    let feeder = std::thread::spawn(move || {
        // Until the reader of the pipe is dead.
        while pipe.write_all(transaction("killed").as_bytes()).is_ok() {}
    });
    let mut seen = 0;
    wait_until("the writer commits", Duration::from_secs(60), || {
        seen = count(who, database);
        seen > before + 10 * ROWS
    });
    child.kill().expect("kill");
    child.wait().expect("wait");
    feeder.join().expect("the feeder");
    assert!(count(who, database) >= seen, "committed rows are gone");
    assert_whole(who, database);
}

fn sqlite_works(who: Who) {
    if !who.can(&["sqlite3"]) {
        return;
    }
    let scratch = Scratch::new();
    let source = who.folder(&scratch, "source");
    let mount: Mount = who.mount(&source);
    let names = ["wal.db", "delete.db", MAPPED];
    for (name, journal) in names.into_iter().zip(["wal", "delete", "wal"]) {
        let database = mount.path().join(name);
        let mapped = if name == MAPPED { "268435456" } else { "0" };
        assert_eq!(ask(who, &database, "PRAGMA mmap_size"), mapped);
        let set = format!("PRAGMA journal_mode={journal}; {SCHEMA}");
        assert_eq!(ask(who, &database, &set), journal);
        writers_share(who, &database);
        for _ in 0..soak(20) {
            writer_dies(who, &database);
        }
        ask(who, &database, "DELETE FROM facts WHERE id % 2; VACUUM");
        assert_eq!(ask(who, &database, "PRAGMA integrity_check"), "ok");
    }
    drop(mount);
    for name in names {
        assert_eq!(ask(who, &source.join(name), "PRAGMA integrity_check"), "ok");
    }
}

#[test]
fn sqlite_keeps_its_promises_as_root() {
    sqlite_works(Who::Root);
}

#[test]
fn sqlite_keeps_its_promises_as_an_ordinary_user() {
    sqlite_works(Who::User);
}
