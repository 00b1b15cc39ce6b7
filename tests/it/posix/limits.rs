//! What a program sees of locks and blocks that FUSE or the library does not tell of, so that it is
//! noticed when that changes. More of that kind stands in [`crate::limits`].

use crate::children::Actor;
use crate::support::{Mount, Need, Scratch, require};

fn mounted() -> Option<(Scratch, Mount)> {
    require(&[Need::Fuse]).then(|| {
        let source = Scratch::new();
        let mount = Mount::of(source.path()).start();
        (source, mount)
    })
}

/// fuser does not hand on whether a lock is of a process or of an open.
#[test]
fn an_ofd_lock_is_named_by_a_process() {
    let Some((source, mount)) = mounted() else {
        return;
    };
    source.file("f", b"0123456789");
    let path = mount.path().join("f");
    let (mut a, mut b) = (Actor::locker(&path), Actor::locker(&path));
    assert_eq!(a.ask("set ofd-write 0 5"), "ok");
    let holder = b.ask("get write 0 0");
    let holder = holder.strip_prefix("write 0 5 ").expect("the range");
    let holder: u32 = holder.parse().expect("a process, not -1");
    assert!(std::path::Path::new(&format!("/proc/{}/task/{holder}", a.pid())).exists());
}

/// swapon(2) wants a file's blocks, which FUSE does not tell.
#[test]
fn a_file_of_the_mount_is_no_swap_space() {
    let Some((_source, mount)) = mounted() else {
        return;
    };
    let needs = [Need::Root, Need::Tool("mkswap"), Need::Tool("swapon")];
    if !require(&needs) {
        return;
    }
    use crate::support::{output, run, sbin};
    use std::process::Command;
    let path = mount.path().join("swap");
    crate::support::write_file(&path, &[0; 1 << 20]);
    crate::support::set_mode(&path, 0o600);
    run(Command::new(sbin("mkswap")).arg(&path));
    let out = output(Command::new(sbin("swapon")).arg(&path));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("Invalid argument"), "{said}");
}
