//! Extended attributes that name users and groups: their ids are translated on the way.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::ids::{IdMap, NOBODY, STRANGER};
use crate::sys::{Errno, Fail, Result};

/// The ACL that stands beside the mode (acl(5)).
pub(super) const ACCESS_ACL: &str = "system.posix_acl_access";
/// The ACL that new files of a directory get.
const DEFAULT_ACL: &str = "system.posix_acl_default";
/// The capabilities of a program, and in whose user namespace they hold (capabilities(7)).
const CAPABILITIES: &str = "security.capability";

/// Header and entry of an ACL, in bytes (linux/posix_acl_xattr.h): a version; tag, rights, id.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// Revisions of file capabilities (linux/capability.h): the third ends with the uid that is root
/// in the namespace; the second means uid 0.
const REVISION: u32 = 0xff00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
const SECOND_LEN: usize = 20;
const THIRD_LEN: usize = 24;

/// Which way an attribute goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the source to the mount.
    Out,
    /// From the mount to the source.
    In,
}

/// What an attribute's value names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Acl,
    Root,
}

impl Named {
    /// `None` for an attribute that names nobody.
    pub(super) fn of(name: &OsStr) -> Option<Self> {
        match name.as_bytes() {
            n if n == ACCESS_ACL.as_bytes() || n == DEFAULT_ACL.as_bytes() => Some(Self::Acl),
            n if n == CAPABILITIES.as_bytes() => Some(Self::Root),
            _ => None,
        }
    }

    /// The value with its ids translated. What does not parse stays as it is: the kernel judges it.
    ///
    /// # Errors
    /// EOVERFLOW for a name that has no id in the source.
    pub(super) fn translate(self, ids: &IdMap, way: Way, mut value: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Acl => acl(ids, way, &mut value).map(|()| value),
            Self::Root => root(ids, way, value),
        }
    }
}

fn acl(ids: &IdMap, way: Way, value: &mut [u8]) -> Result<()> {
    let Some(entries) = value.get_mut(ACL_HEADER..) else {
        return Ok(());
    };
    for entry in entries.chunks_exact_mut(ACL_ENTRY) {
        let [tag0, tag1, rights0, rights1, id @ ..] = entry else {
            continue;
        };
        let names = match u16::from_le_bytes([*tag0, *tag1]) {
            ACL_USER => &ids.users,
            ACL_GROUP => &ids.groups,
            _ => continue,
        };
        let Ok(bytes) = <[u8; 4]>::try_from(&*id) else {
            continue;
        };
        let old = u32::from_le_bytes(bytes);
        let new = match way {
            Way::Out => names.mapped(old),
            Way::In => Some(names.source(old).ok_or(unknown("the ACL", old))?),
        };
        if new.is_none() {
            // Should there be a process of that number after all.
            (*rights0, *rights1) = (0, 0);
        }
        id.copy_from_slice(&new.unwrap_or(STRANGER).to_le_bytes());
    }
    Ok(())
}

/// The uid that is root where the capabilities hold.
fn root(ids: &IdMap, way: Way, mut value: Vec<u8>) -> Result<Vec<u8>> {
    let word = |at: usize| -> Option<u32> {
        let bytes = value.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let Some(magic) = word(0) else {
        return Ok(value);
    };
    let old = match (magic & REVISION, value.len()) {
        (REVISION_2, SECOND_LEN) => 0,
        (REVISION_3, THIRD_LEN) => word(SECOND_LEN).unwrap_or(NOBODY),
        _ => return Ok(value),
    };
    let new = match way {
        // An id that nobody has: the capabilities hold nowhere.
        Way::Out => ids.users.mapped(old).unwrap_or(STRANGER),
        Way::In => ids
            .users
            .source(old)
            .ok_or(unknown("the namespace's root", old))?,
    };
    if new != old {
        let magic = magic & !REVISION | REVISION_3;
        value.truncate(SECOND_LEN);
        value[..4].copy_from_slice(&magic.to_le_bytes());
        value.extend_from_slice(&new.to_le_bytes());
    }
    Ok(value)
}

fn unknown(whose: &str, id: u32) -> Fail {
    Fail::new(Errno::OVERFLOW, "setxattr").because(format!("{whose}: {id} is nobody in the source"))
}

#[cfg(test)]
mod tests {
    use super::super::ids::{IdRange, Ids};
    use super::*;

    fn map() -> IdMap {
        let ids = |source, mount| {
            let range = IdRange {
                source,
                mount,
                count: 1,
            };
            Ids::new(None, vec![range]).unwrap()
        };
        IdMap {
            users: ids(1, 11),
            groups: ids(2, 12),
        }
    }

    /// Owner, one user, one group, mask, others.
    fn value(user: u32, group: u32) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, id) in [
            (1_u16, NOBODY),
            (ACL_USER, user),
            (4, NOBODY),
            (ACL_GROUP, group),
            (16, NOBODY),
            (32, NOBODY),
        ] {
            value.extend(tag.to_le_bytes());
            value.extend([7, 0]);
            value.extend(id.to_le_bytes());
        }
        value
    }

    fn acl(way: Way, user: u32, group: u32) -> Result<Vec<u8>> {
        Named::Acl.translate(&map(), way, value(user, group))
    }

    #[test]
    fn an_acl_names_the_same_people_on_both_sides() {
        assert_eq!(acl(Way::Out, 1, 2).unwrap(), value(11, 12));
        assert_eq!(acl(Way::In, 11, 12).unwrap(), value(1, 2));
        assert_eq!(acl(Way::Out, 2, 1).unwrap(), value(2, 1), "users, groups");
    }

    #[test]
    fn who_has_no_id_on_the_other_side_is_named_as_nobody_else() {
        let mut hidden = value(STRANGER, STRANGER);
        for entry in [1, 3] {
            hidden[ACL_HEADER + entry * ACL_ENTRY + 2] = 0;
        }
        assert_eq!(acl(Way::Out, 11, 12).unwrap(), hidden);
        for (user, group) in [(1, 12), (11, 2), (STRANGER, 12)] {
            let refused = acl(Way::In, user, group).unwrap_err();
            assert_eq!(refused.errno, Errno::OVERFLOW);
        }
    }

    #[test]
    fn what_is_no_acl_stays() {
        for odd in [&[][..], &[2, 0], &[2, 0, 0, 0, 2, 0, 7]] {
            for way in [Way::In, Way::Out] {
                let same = Named::Acl.translate(&map(), way, odd.to_vec()).unwrap();
                assert_eq!(same, odd);
            }
        }
    }

    fn capabilities(root: Option<u32>) -> Vec<u8> {
        let revision = if root.is_some() {
            REVISION_3
        } else {
            REVISION_2
        };
        let mut value = (revision | 1).to_le_bytes().to_vec();
        value.extend([4; 16]);
        value.extend(root.into_iter().flat_map(u32::to_le_bytes));
        value
    }

    #[test]
    fn capabilities_follow_the_root_that_they_are_of() {
        let range = IdRange {
            source: 0,
            mount: 100_000,
            count: 1000,
        };
        let shifted = IdMap {
            users: Ids::new(None, vec![range]).unwrap(),
            groups: Ids::default(),
        };
        let go = |way, value| Named::Root.translate(&shifted, way, value);
        let shown = go(Way::Out, capabilities(None)).unwrap();
        assert_eq!(shown, capabilities(Some(100_000)));
        assert_eq!(go(Way::In, shown).unwrap(), capabilities(Some(0)));
        assert_eq!(
            go(Way::In, capabilities(None)).unwrap_err().errno,
            Errno::OVERFLOW
        );
        let plain = Named::Root.translate(&map(), Way::Out, capabilities(None));
        assert_eq!(plain.unwrap(), capabilities(None));
        assert_eq!(go(Way::Out, vec![1, 2]).unwrap(), [1, 2]);
    }
}
