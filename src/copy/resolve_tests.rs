//! Names in a real tree, and where they lead.

use std::fs::{self, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::fs::{mknodat, open};

use super::*;

/// `outside`, and beside it the mounted `tree` with `file`, `d/e/deep` and the `.copy` in `d`.
struct World {
    folder: tempfile::TempDir,
    root: OwnedFd,
    directory: OwnedFd,
    mountpoints: Vec<PathBuf>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        fs::create_dir_all(base.join("tree/d/e")).unwrap();
        fs::write(base.join("outside"), "outside").unwrap();
        fs::write(base.join("tree/file"), "file").unwrap();
        fs::write(base.join("tree/d/e/deep"), "deep").unwrap();
        let folder_of = |name: &str| open(base.join(name), FOLDER, Mode::empty()).unwrap();
        let (root, directory) = (folder_of("tree"), folder_of("tree/d"));
        Self {
            folder,
            root,
            directory,
            mountpoints: vec!["/some/mount point".into(), "/other".into()],
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("tree").join(name)
    }

    fn tree(&self) -> Tree<'_> {
        Tree {
            root: self.root.as_fd(),
            directory: self.directory.as_fd(),
            mountpoints: &self.mountpoints,
            reserved: Some(OsStr::new(".copy")),
            umask: 0o022,
            told: &|_| {},
        }
    }

    fn source(&self, name: &str) -> std::result::Result<Vec<u8>, Errno> {
        let found = self
            .tree()
            .source(name.as_bytes(), true)
            .map_err(|fail| fail.errno)?;
        match file_type(&found.stat) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        fs::read(proc_name(found.file.as_fd()))
            .map_err(|error| Errno::from_io_error(&error).unwrap())
    }

    /// Where a copy would go, relative to the tree.
    fn target(&self, name: &str) -> std::result::Result<String, Errno> {
        let found = self.tree().destination(name.as_bytes(), true);
        let path = match found.map_err(|fail| fail.errno)? {
            Destination::Directory(directory) => fs::read_link(proc_name(directory.as_fd()))
                .unwrap()
                .join(""),
            Destination::Name {
                only_directory: true,
                ..
            } => return Err(Errno::NOENT),
            Destination::Name { target, .. } => {
                let kind = target.existing.as_ref().map(file_type);
                if kind.is_some_and(|kind| kind != FileType::RegularFile) {
                    return Err(Errno::INVAL);
                }
                if kind.is_some() {
                    target.check_writable().map_err(|fail| fail.errno)?;
                }
                let holder = fs::read_link(proc_name(target.directory.as_fd())).unwrap();
                holder.join(&target.name)
            }
        };
        let tree = fs::canonicalize(self.path("")).unwrap();
        let path = path.strip_prefix(tree).unwrap();
        Ok(path.to_str().unwrap().to_owned())
    }
}

#[test]
fn names_start_from_the_directory_and_climb_to_the_root() {
    let world = World::new();
    assert_eq!(world.source("e/deep").unwrap(), b"deep");
    assert_eq!(world.source("../file").unwrap(), b"file");
    assert_eq!(world.source("e/../../d/e/deep").unwrap(), b"deep");
    assert_eq!(world.source("../../outside"), Err(Errno::XDEV));
    assert_eq!(world.source("../../tree/file"), Err(Errno::XDEV));
    assert_eq!(world.source("nothing"), Err(Errno::NOENT));
    assert_eq!(world.source(""), Err(Errno::NOENT));
    assert_eq!(world.source("e/deep/"), Err(Errno::NOTDIR));
}

#[test]
fn absolute_names_begin_with_the_mountpoint() {
    let world = World::new();
    assert_eq!(world.source("/some/mount point/file").unwrap(), b"file");
    assert_eq!(
        world.source("//some/./mount point//d/e/deep").unwrap(),
        b"deep"
    );
    assert_eq!(world.source("/other/file").unwrap(), b"file");
    assert_eq!(world.source("/some/mount pointed/file"), Err(Errno::XDEV));
    assert_eq!(world.source("/some"), Err(Errno::XDEV));
    assert_eq!(world.source("/some/mount point/../x"), Err(Errno::XDEV));
    assert_eq!(world.source("/etc/passwd"), Err(Errno::XDEV));
    assert_eq!(world.target("/some/mount point").unwrap(), "");
    assert_eq!(world.target("/some/mount point/new").unwrap(), "new");
}

#[test]
fn links_are_followed_within_the_tree_only() {
    let world = World::new();
    symlink("../file", world.path("d/inward")).unwrap();
    symlink("../../outside", world.path("d/outward")).unwrap();
    symlink("/etc/passwd", world.path("d/absolute")).unwrap();
    symlink("..", world.path("d/up")).unwrap();
    symlink("/proc/self/root", world.path("d/magic")).unwrap();
    symlink("round", world.path("d/round")).unwrap();
    assert_eq!(world.source("inward").unwrap(), b"file");
    assert_eq!(world.source("up/file").unwrap(), b"file");
    assert_eq!(world.target("inward").unwrap(), "file");
    assert_eq!(world.target("up/new").unwrap(), "new");
    assert_eq!(world.target("up").unwrap(), "");
    for name in ["outward", "absolute", "up/../outside", "magic/etc/passwd"] {
        assert_eq!(world.source(name), Err(Errno::XDEV), "{name}");
        assert_eq!(world.target(name), Err(Errno::XDEV), "{name}");
    }
    assert_eq!(world.source("round"), Err(Errno::LOOP));
    assert_eq!(world.target("round"), Err(Errno::LOOP));
    let text = world
        .tree()
        .source(b"outward", true)
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("leaves the mounted tree"), "{text}");
}

#[test]
fn a_directory_is_found_however_it_is_named() {
    let world = World::new();
    for name in ["e", "e/", "e/.", "e/deep/.."] {
        let errno = (name == "e/deep/..").then_some(Errno::NOTDIR);
        let expected = errno.map_or(Ok("d/e".to_owned()), Err);
        assert_eq!(world.target(name), expected, "{name}");
    }
    assert_eq!(world.target(".").unwrap(), "d");
    assert_eq!(world.target("..").unwrap(), "");
    assert_eq!(world.target("new").unwrap(), "d/new");
    assert_eq!(world.target("e/deep").unwrap(), "d/e/deep");
    assert_eq!(world.target("new/"), Err(Errno::NOENT));
    assert_eq!(world.target("e/deep/"), Err(Errno::NOTDIR));
    assert_eq!(world.target("none/new"), Err(Errno::NOENT));
    assert_eq!(world.target("../.."), Err(Errno::XDEV));
    let place = world.tree().destination(b"new//", true).unwrap();
    let Destination::Name {
        target,
        only_directory: true,
    } = place
    else {
        panic!("{place:?}");
    };
    assert_eq!(target.name, "new");
}

#[test]
fn a_link_is_found_itself_unless_it_is_to_be_followed() {
    let world = World::new();
    for (text, name) in [
        ("../file", "file"),
        ("nowhere", "dangling"),
        ("/etc", "absolute"),
    ] {
        symlink(text, world.path("d").join(name)).unwrap();
        let found = world.tree().source(name.as_bytes(), false).unwrap();
        assert_eq!(file_type(&found.stat), FileType::Symlink);
        let Destination::Name { target, .. } =
            world.tree().destination(name.as_bytes(), false).unwrap()
        else {
            panic!("{name} is no directory");
        };
        assert_eq!(target.name, name);
        let existing = target.existing.as_ref().map(file_type);
        assert_eq!(existing, Some(FileType::Symlink));
    }
    symlink("e", world.path("d/folder")).unwrap();
    let found = world.tree().source(b"folder", false).unwrap();
    assert_eq!(file_type(&found.stat), FileType::Symlink);
    let found = world.tree().source(b"folder/", false).unwrap();
    assert_eq!(file_type(&found.stat), FileType::Directory);
    assert_eq!(world.target("folder").unwrap(), "d/e");
}

#[test]
fn a_source_is_taken_under_its_last_name() {
    let world = World::new();
    let name = |text: &str| world.tree().source(text.as_bytes(), false).unwrap().name;
    assert_eq!(name("e"), "e");
    assert_eq!(name("e//"), "e");
    assert_eq!(name("e/deep"), "deep");
    for all_that_is_in_it in ["e/.", ".", "..", "e/..", "./"] {
        assert_eq!(name(all_that_is_in_it), "", "{all_that_is_in_it}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let world = World::new();
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, world.path("d/fifo"), FileType::Fifo, mode, 0).unwrap();
    symlink("nowhere", world.path("d/dangling")).unwrap();
    assert_eq!(world.source("fifo"), Err(Errno::INVAL));
    assert_eq!(world.target("fifo"), Err(Errno::INVAL));
    assert_eq!(world.source("e"), Err(Errno::ISDIR));
    assert_eq!(world.source("dangling"), Err(Errno::NOENT));
    assert_eq!(world.target("dangling"), Err(Errno::NOENT));
}

#[test]
fn names_of_virtual_files_are_reserved() {
    let world = World::new();
    let tree = world.tree();
    let (root, directory) = (world.root.as_fd(), world.directory.as_fd());
    assert!(tree.is_reserved(directory, OsStr::new(".copy")));
    assert!(tree.is_reserved(root, OsStr::new(".copy")));
    assert!(tree.is_reserved(root, OsStr::new(".corfs")));
    assert!(!tree.is_reserved(directory, OsStr::new(".corfs")));
    assert!(!tree.is_reserved(root, OsStr::new("copy")));
}

#[test]
fn a_removed_directory_leads_nowhere() {
    let world = World::new();
    fs::rename(world.path("d"), world.path("moved")).unwrap();
    assert_eq!(
        world.source("../file").unwrap(),
        b"file",
        "moved within the tree"
    );
    fs::remove_dir_all(world.path("moved")).unwrap();
    assert_eq!(world.source("../file"), Err(Errno::NOENT));
    assert_eq!(
        world.target("new").unwrap_or_default(),
        "moved (deleted)/new"
    );
    fs::create_dir(world.path("moved (deleted)")).unwrap();
    assert_eq!(
        world.source("../file"),
        Err(Errno::NOENT),
        "not mistaken for its namesake"
    );
}

#[test]
fn a_directory_moved_out_of_the_tree_does_not_climb() {
    let world = World::new();
    fs::rename(world.path("d"), world.folder.path().join("elsewhere")).unwrap();
    assert_eq!(world.source("../outside"), Err(Errno::NOENT));
}

#[test]
fn what_the_caller_may_not_write_is_not_replaced() {
    let caller = crate::sys::creds::Credentials {
        uid: 54_321,
        gid: 54_321,
        groups: vec![],
        effective: 0,
    };
    let world = World::new();
    let mode = |name: &str, mode| {
        fs::set_permissions(world.path(name), Permissions::from_mode(mode)).unwrap();
    };
    fs::set_permissions(world.folder.path(), Permissions::from_mode(0o755)).unwrap();
    mode("d/e", 0o777);
    mode("d/e/deep", 0o644);
    let Ok(refused) = caller.run_as(|| world.target("e/deep")) else {
        crate::sys::testing::skip("needs the right to act as another user");
        return;
    };
    assert_eq!(refused, Err(Errno::ACCESS));
    assert!(caller.run_as(|| world.target("e/new")).unwrap().is_ok());
    mode("d/e/deep", 0o666);
    assert!(caller.run_as(|| world.target("e/deep")).unwrap().is_ok());
    mode("d/e", 0o700);
    assert_eq!(
        caller.run_as(|| world.source("e/deep")).unwrap(),
        Err(Errno::ACCESS)
    );
}
