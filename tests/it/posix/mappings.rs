//! Shared memory by file: processes that map one file, and what becomes of its end.

use super::*;
use crate::children::Actor;
use rustix::fs::ftruncate;
use std::os::unix::process::ExitStatusExt;

checks! {
    two_processes_share_a_mapping,
    stores_are_read_by_others_and_writes_are_seen_in_the_map,
    stores_last_when_the_map_and_the_file_are_closed,
    the_last_page_ends_in_zeros,
    a_touch_beyond_the_end_is_sigbus,
    a_cut_file_is_sigbus_to_its_mapped_reader,
    a_file_cut_and_grown_shows_zeros_to_its_mapped_reader,
    a_mapping_can_be_locked_into_memory,
    a_file_open_for_reading_is_not_mapped_for_writing,
    a_mapping_outlives_the_name_and_the_descriptor,
}

/// Two processes that have mapped `len` bytes of a new file with that content.
fn two(at: &Path, content: &[u8], len: usize) -> (Actor, Actor) {
    let path = file(at, "f", content);
    [(); 2].map(|()| mapped(&path, len)).into()
}

fn mapped(path: &Path, len: usize) -> Actor {
    let mut actor = Actor::mapper(path);
    assert_eq!(actor.ask(&format!("map {len}")), "ok");
    actor
}

fn two_processes_share_a_mapping(at: &Path) {
    let (mut a, mut b) = two(at, &[b'.'; 40_000], 40_000);
    for round in 0..50 {
        let place = round * 700;
        assert_eq!(a.ask(&format!("store {place} ping{round}")), "ok");
        let seen = b.ask(&format!("load {place} {}", 4 + round.to_string().len()));
        assert_eq!(seen, format!("ping{round}"));
        assert_eq!(b.ask(&format!("store {place} pong")), "ok");
        assert_eq!(a.ask(&format!("load {place} 4")), "pong");
    }
}

fn stores_are_read_by_others_and_writes_are_seen_in_the_map(at: &Path) {
    let (mut a, mut b) = two(at, &[b'.'; 10_000], 10_000);
    let fd = open(&at.join("f"), OFlags::RDWR);
    assert_eq!(a.ask("store 5000 stored"), "ok");
    assert_eq!(read_at(&fd, 4999, 8), b".stored.");
    write_at(&fd, 5003, b"written");
    assert_eq!(a.ask("load 4999 12"), ".stowritten.");
    assert_eq!(b.ask("load 4999 12"), ".stowritten.");
    // And once more over the page that is dirty now.
    assert_eq!(b.ask("store 5000 again"), "ok");
    assert_eq!(read_at(&fd, 4999, 12), b".againitten.");
}

fn stores_last_when_the_map_and_the_file_are_closed(at: &Path) {
    for (name, orders) in [
        ("unmapped-first", ["unmap", "close"]),
        ("closed-first", ["close", "unmap"]),
    ] {
        let path = file(at, name, &[b'.'; 10_000]);
        let mut actor = mapped(&path, 10_000);
        assert_eq!(actor.ask("store 9000 kept"), "ok");
        for order in orders {
            assert_eq!(actor.ask(order), "ok");
        }
        drop(actor);
        assert_eq!(&read(&path)[8999..9005], b".kept.", "{name}");
    }
}

fn the_last_page_ends_in_zeros(at: &Path) {
    let (mut a, mut b) = two(at, b"short", 4096);
    assert_eq!(a.ask("load 0 8"), r"short\x00\x00\x00");
    // What is stored behind the end is not the file's.
    assert_eq!(a.ask("store 100 nothing"), "ok");
    assert_eq!(a.ask("store 4 T"), "ok");
    assert_eq!(a.ask("sync"), "ok");
    assert_eq!(b.ask("load 0 5"), "shorT");
    assert_eq!(read(&at.join("f")), b"shorT");
}

/// Touches a byte that is not the file's: the toucher dies of it.
fn dies(mut actor: Actor, place: usize) {
    actor.order(&format!("load {place} 1"));
    let status = actor.end();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

fn a_touch_beyond_the_end_is_sigbus(at: &Path) {
    let (mut a, b) = two(at, &[b'.'; 5000], 20_000);
    assert_eq!(a.ask("load 4999 1"), ".");
    assert_eq!(a.ask("load 8191 1"), r"\x00");
    dies(a, 8192);
    dies(b, 16_384);
}

fn a_cut_file_is_sigbus_to_its_mapped_reader(at: &Path) {
    let (mut a, b) = two(at, &[b'.'; 40_000], 40_000);
    assert_eq!(a.ask("load 39999 1"), ".");
    ftruncate(open(&at.join("f"), OFlags::RDWR), 5000).unwrap();
    assert_eq!(a.ask("load 4999 2"), r".\x00");
    dies(a, 39_999);
    dies(b, 8192);
}

fn a_file_cut_and_grown_shows_zeros_to_its_mapped_reader(at: &Path) {
    let (mut a, mut b) = two(at, &[b'.'; 40_000], 40_000);
    assert_eq!(a.ask("load 39999 1"), ".");
    assert_eq!(b.ask("store 30000 dirty"), "ok");
    let fd = open(&at.join("f"), OFlags::RDWR);
    ftruncate(&fd, 5000).unwrap();
    ftruncate(&fd, 40_000).unwrap();
    for actor in [&mut a, &mut b] {
        assert_eq!(actor.ask("load 4999 2"), r".\x00");
        assert_eq!(actor.ask("load 30000 2"), r"\x00\x00");
        assert_eq!(actor.ask("load 39999 1"), r"\x00");
    }
    assert_eq!(b.ask("store 39998 ok"), "ok");
    assert_eq!(a.ask("load 39998 2"), "ok");
    assert_eq!(&read(&at.join("f"))[39_997..], b"\0ok");
}

fn a_mapping_can_be_locked_into_memory(at: &Path) {
    let (mut a, mut b) = two(at, &[b'.'; 10_000], 10_000);
    assert_eq!(a.ask("lock"), "ok");
    assert_eq!(a.ask("store 9000 held"), "ok");
    assert_eq!(b.ask("load 9000 4"), "held");
    assert_eq!(a.ask("sync"), "ok");
    assert_eq!(a.ask("unmap"), "ok");
}

fn a_file_open_for_reading_is_not_mapped_for_writing(at: &Path) {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let path = file(at, "f", &[b'.'; 4096]);
    let map = |fd: &OwnedFd, protection, flags| {
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody uses; it goes
        // with the process if it is made after all, which fails the check.
        unsafe { mmap(std::ptr::null_mut(), 4096, protection, flags, fd, 0) }.map(drop)
    };
    let both = ProtFlags::READ | ProtFlags::WRITE;
    let reader = open(&path, OFlags::RDONLY);
    assert_errno!(map(&reader, both, MapFlags::SHARED), ACCESS);
    let writer = open(&path, OFlags::WRONLY);
    assert_errno!(map(&writer, ProtFlags::READ, MapFlags::SHARED), ACCESS);
}

fn a_mapping_outlives_the_name_and_the_descriptor(at: &Path) {
    let (mut a, mut b) = two(at, &[b'.'; 300_000], 300_000);
    rustix::fs::unlink(at.join("f")).unwrap();
    assert_eq!(a.ask("close"), "ok");
    assert_eq!(b.ask("close"), "ok");
    assert_eq!(a.ask("store 299000 still"), "ok");
    assert_eq!(a.ask("sync"), "ok");
    assert_eq!(b.ask("load 298999 7"), ".still.");
    assert_eq!(b.ask("load 150000 3"), "...");
}
