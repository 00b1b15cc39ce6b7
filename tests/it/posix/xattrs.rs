//! Extended attributes and access control lists.

use super::*;
use crate::support::{output, run};
use rustix::fs::{XattrFlags, getxattr, lgetxattr, listxattr, lsetxattr, removexattr, setxattr};
use std::process::Command;

checks! {
    attributes_are_set_read_listed_and_removed,
    create_and_replace_flags,
    sizes_are_asked_for_and_kept_to,
    values_large_and_empty,
    attributes_of_an_open_file,
    attributes_of_directories_and_links,
    trusted_attributes_are_roots [Need::Root],
    security_attributes_are_kept [Need::Root],
    a_setgid_directory_with_a_default_list_hands_on_both [Need::Root, Need::Tool("setfacl"), Need::Tool("getfacl")],
    lists_are_kept [Need::Tool("setfacl"), Need::Tool("getfacl")],
    default_lists_are_inherited [Need::Tool("setfacl"), Need::Tool("getfacl")],
    lists_are_obeyed [Need::Root, Need::Tool("setfacl")],
    chmod_changes_the_mask [Need::Tool("setfacl"), Need::Tool("getfacl")],
}

const NONE: XattrFlags = XattrFlags::empty();

/// The value, at most 70,000 bytes of it.
fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 70_000];
    let len = lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// The names in the `user.` space, sorted.
fn names(path: &Path) -> Vec<String> {
    let mut list = vec![0_u8; 70_000];
    let len = listxattr(path, &mut list[..]).unwrap();
    let mut names: Vec<_> = list[..len]
        .split(|&b| b == 0)
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .filter(|name| name.starts_with("user."))
        .collect();
    names.sort();
    names
}

fn attributes_are_set_read_listed_and_removed(at: &Path) {
    let path = file(at, "f", b"");
    assert_eq!(names(&path), [""; 0]);
    setxattr(&path, "user.one", b"1", NONE).unwrap();
    setxattr(&path, "user.two", b"\0binary\xff", NONE).unwrap();
    assert_eq!(names(&path), ["user.one", "user.two"]);
    assert_eq!(get(&path, "user.two").unwrap(), b"\0binary\xff");
    setxattr(&path, "user.one", b"changed", NONE).unwrap();
    assert_eq!(get(&path, "user.one").unwrap(), b"changed");
    removexattr(&path, "user.one").unwrap();
    assert_errno!(get(&path, "user.one"), NODATA);
    assert_errno!(removexattr(&path, "user.one"), NODATA);
    assert_eq!(names(&path), ["user.two"]);
    assert_errno!(setxattr(at.join("none"), "user.x", b"", NONE), NOENT);
}

fn create_and_replace_flags(at: &Path) {
    let path = file(at, "f", b"");
    assert_errno!(setxattr(&path, "user.x", b"1", XattrFlags::REPLACE), NODATA);
    setxattr(&path, "user.x", b"1", XattrFlags::CREATE).unwrap();
    assert_errno!(setxattr(&path, "user.x", b"2", XattrFlags::CREATE), EXIST);
    assert_eq!(get(&path, "user.x").unwrap(), b"1");
    setxattr(&path, "user.x", b"2", XattrFlags::REPLACE).unwrap();
    assert_eq!(get(&path, "user.x").unwrap(), b"2");
}

fn sizes_are_asked_for_and_kept_to(at: &Path) {
    let path = file(at, "f", b"");
    setxattr(&path, "user.x", b"0123456789", NONE).unwrap();
    assert_eq!(
        sizes(&path, c"user.x"),
        (10, listxattr(&path, &mut [0; 4096][..]).unwrap())
    );
    let mut small = [0_u8; 5];
    assert_errno!(getxattr(&path, "user.x", &mut small[..]), RANGE);
    let mut exact = [0_u8; 10];
    assert_eq!(getxattr(&path, "user.x", &mut exact[..]).unwrap(), 10);
    assert_eq!(&exact, b"0123456789");
    assert_errno!(listxattr(&path, &mut small[..]), RANGE);
}

/// What the kernel says of a value's and the list's size when it is given no room (rustix, given
/// none, does not ask).
fn sizes(path: &Path, name: &std::ffi::CStr) -> (usize, usize) {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let nowhere = std::ptr::null_mut();
    // SAFETY: both names are C strings that live through the calls, and with size 0 the kernel
    // writes nothing.
    let (value, list) = unsafe {
        (
            libc::getxattr(path.as_ptr(), name.as_ptr(), nowhere, 0),
            libc::listxattr(path.as_ptr(), nowhere.cast(), 0),
        )
    };
    assert!(
        value >= 0 && list >= 0,
        "{}",
        std::io::Error::last_os_error()
    );
    (value.cast_unsigned(), list.cast_unsigned())
}

fn values_large_and_empty(at: &Path) {
    let path = file(at, "f", b"");
    setxattr(&path, "user.empty", b"", NONE).unwrap();
    assert_eq!(get(&path, "user.empty").unwrap(), b"");
    // What fits into a block beside the rest, on every file system that has them.
    let large = crate::support::content(1, 0, 3000);
    setxattr(&path, "user.large", &large, NONE).unwrap();
    assert_eq!(get(&path, "user.large").unwrap(), large);
    assert_errno!(setxattr(&path, "user.huge", &[0; 65_537], NONE), TOOBIG);
    let name = format!("user.{}", "n".repeat(250));
    setxattr(&path, name.as_str(), b"x", NONE).unwrap();
    let longer = format!("user.{}", "n".repeat(251));
    assert_errno!(setxattr(&path, longer.as_str(), b"x", NONE), RANGE);
}

fn attributes_of_an_open_file(at: &Path) {
    use rustix::fs::{fgetxattr, flistxattr, fremovexattr, fsetxattr};
    let path = file(at, "f", b"");
    let fd = open(&path, OFlags::RDWR);
    rustix::fs::unlink(&path).unwrap();
    fsetxattr(&fd, "user.x", b"1", NONE).unwrap();
    let mut value = [0_u8; 10];
    assert_eq!(fgetxattr(&fd, "user.x", &mut value[..]).unwrap(), 1);
    let mut list = [0_u8; 1000];
    let len = flistxattr(&fd, &mut list[..]).unwrap();
    assert!(list[..len].split(|&b| b == 0).any(|name| name == b"user.x"));
    fremovexattr(&fd, "user.x").unwrap();
    assert_errno!(fgetxattr(&fd, "user.x", &mut value[..]), NODATA);
}

fn attributes_of_directories_and_links(at: &Path) {
    let folder = dir(at, "d");
    setxattr(&folder, "user.x", b"dir", NONE).unwrap();
    assert_eq!(get(&folder, "user.x").unwrap(), b"dir");
    let link = at.join("l");
    rustix::fs::symlink("d", &link).unwrap();
    assert_errno!(lsetxattr(&link, "user.x", b"1", NONE), PERM);
    let mut value = [0_u8; 10];
    assert_eq!(
        getxattr(&link, "user.x", &mut value[..]).unwrap(),
        3,
        "followed"
    );
}

fn trusted_attributes_are_roots(at: &Path) {
    let path = file(at, "f", b"");
    crate::support::set_mode(&path, 0o666);
    setxattr(&path, "trusted.x", b"1", NONE).unwrap();
    assert_eq!(get(&path, "trusted.x").unwrap(), b"1");
    apart(Some((USER, OTHER)), || {
        assert_errno!(setxattr(&path, "trusted.y", b"1", NONE), PERM);
        assert_errno!(get(&path, "trusted.x"), NODATA);
    });
}

fn security_attributes_are_kept(at: &Path) {
    for path in [file(at, "f", b""), dir(at, "d")] {
        crate::support::set_mode(&path, 0o755);
        setxattr(&path, "security.corfs", b"mark", NONE).unwrap();
        assert_eq!(get(&path, "security.corfs").unwrap(), b"mark");
        apart(Some((USER, OTHER)), || {
            // Anyone may read it, and only root change it.
            assert_eq!(get(&path, "security.corfs").unwrap(), b"mark");
            assert_errno!(setxattr(&path, "security.corfs", b"", NONE), PERM);
        });
        removexattr(&path, "security.corfs").unwrap();
        assert_errno!(get(&path, "security.corfs"), NODATA);
    }
}

fn a_setgid_directory_with_a_default_list_hands_on_both(at: &Path) {
    if !has_lists() {
        return;
    }
    let folder = dir(at, "d");
    set_owner(&folder, 0, 4242);
    crate::support::set_mode(&folder, 0o2777);
    setfacl(&["-d", "-m", "u::rwx,g::rx,o::-,g:4343:rw,m::rwx"], &folder);
    apart(Some((USER, OTHER)), || {
        let (plain, inner) = (file(&folder, "f", b""), dir(&folder, "e"));
        assert_eq!((stat(&plain).st_uid, stat(&plain).st_gid), (USER, 4242));
        assert_eq!((stat(&inner).st_uid, stat(&inner).st_gid), (USER, 4242));
        assert_eq!(mode(&inner) & 0o2000, 0o2000);
        assert!(
            getfacl(&plain).contains("group:4343:rw-"),
            "{}",
            getfacl(&plain)
        );
        let list = getfacl(&inner);
        assert!(list.contains("default:group:4343:rw-"), "{list}");
        let deeper = file(&inner, "f", b"");
        assert!(getfacl(&deeper).contains("group:4343:rw-"));
        assert_eq!(stat(&deeper).st_gid, 4242);
    });
}

/// Whether the file system keeps access control lists at all.
fn has_lists() -> bool {
    // Not on the mount: there it is to work wherever it does in the source.
    let probe = tempfile::NamedTempFile::new().expect("a file");
    let set = output(
        Command::new("setfacl")
            .args(["-m", "u:1:r"])
            .arg(probe.path()),
    );
    set.status.success()
}

fn setfacl(arguments: &[&str], path: &Path) {
    run(Command::new("setfacl").args(arguments).arg(path));
}

fn getfacl(path: &Path) -> String {
    run(Command::new("getfacl").args(["-cnpE"]).arg(path))
}

fn lists_are_kept(at: &Path) {
    if !has_lists() {
        return;
    }
    let path = file(at, "f", b"");
    crate::support::set_mode(&path, 0o640);
    setfacl(&["-m", "u:54321:rw,g:4242:r"], &path);
    assert_eq!(
        getfacl(&path),
        "user::rw-\nuser:54321:rw-\ngroup::r--\ngroup:4242:r--\nmask::rw-\nother::---\n\n"
    );
    // The group bits show the mask.
    assert_eq!(mode(&path), 0o660);
    setfacl(&["-b"], &path);
    assert_eq!(getfacl(&path), "user::rw-\ngroup::r--\nother::---\n\n");
}

fn default_lists_are_inherited(at: &Path) {
    if !has_lists() {
        return;
    }
    let folder = dir(at, "d");
    setfacl(
        &["-d", "-m", "u::rwx,g::r-x,o::-,u:54321:rwx,m::rwx"],
        &folder,
    );
    // With a default list the umask does not count.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let plain = file(&folder, "f", b"");
    assert!(
        getfacl(&plain).contains("user:54321:rwx"),
        "{}",
        getfacl(&plain)
    );
    assert_eq!(mode(&plain), 0o660);
    let inner = dir(&folder, "e");
    let list = getfacl(&inner);
    assert!(
        list.contains("user:54321:rwx") && list.contains("default:user:54321:rwx"),
        "{list}"
    );
    assert_eq!(mode(&inner), 0o750);
}

fn lists_are_obeyed(at: &Path) {
    if !has_lists() {
        return;
    }
    let (given, denied) = (file(at, "given", b"x"), file(at, "denied", b"x"));
    crate::support::set_mode(&given, 0o600);
    setfacl(&["-m", &format!("u:{USER}:rw")], &given);
    setfacl(&["-m", &format!("u:{USER}:-")], &denied);
    let folder = dir(at, "folder");
    file(&folder, "f", b"x");
    setfacl(&["-m", &format!("u:{USER}:-")], &folder);
    apart(Some((USER, OTHER)), || {
        assert_errno!(try_open(&denied, OFlags::RDONLY), ACCESS);
        assert_errno!(try_open(&folder.join("f"), OFlags::RDONLY), ACCESS);
        write_at(&open(&given, OFlags::RDWR), 0, b"y");
    });
    apart(Some((OTHER, OTHER)), || {
        assert_errno!(try_open(&given, OFlags::RDONLY), ACCESS);
        open(&denied, OFlags::RDONLY);
    });
}

fn chmod_changes_the_mask(at: &Path) {
    if !has_lists() {
        return;
    }
    let path = file(at, "f", b"");
    setfacl(&["-m", "u:54321:rw"], &path);
    crate::support::set_mode(&path, 0o600);
    let list = getfacl(&path);
    assert!(
        list.contains("mask::---") && list.contains("user:54321:rw-"),
        "{list}"
    );
    crate::support::set_mode(&path, 0o640);
    assert!(getfacl(&path).contains("mask::r--"));
}
