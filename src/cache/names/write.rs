//! Changes of the store of names, as one commit.

use std::collections::HashSet;

use redb::{Database, ReadableTable, Table};
use rustix::fs::FileType;

use super::record::{Record, sealed};
use super::{ACLS, Bytes, Change, LISTED, NAMES, Named, below, child, inside, joined, key_of};

type Done<T> = std::result::Result<T, redb::Error>;
type Rows<'a> = Table<'a, Bytes, Bytes>;

/// The tables of one commit.
struct Writing<'a> {
    names: Rows<'a>,
    listed: Rows<'a>,
    acls: Rows<'a>,
}

/// Makes all changes, or none.
pub(super) fn write(db: &Database, batch: &[Change]) -> Done<()> {
    let txn = db.begin_write()?;
    {
        let mut tables = Writing {
            names: txn.open_table(NAMES)?,
            listed: txn.open_table(LISTED)?,
            acls: txn.open_table(ACLS)?,
        };
        for change in batch {
            tables.apply(change)?;
        }
    }
    txn.commit()?;
    Ok(())
}

impl Writing<'_> {
    fn apply(&mut self, change: &Change) -> Done<()> {
        match change {
            Change::Put(path, record) => self.put(&key_of(path), path, record),
            Change::Gone(path) => self.gone(path),
            Change::Target(path, target) => {
                let key = key_of(path);
                if let Some(mut record) = self.known(&key)? {
                    record.target.clone_from(target);
                    self.names
                        .insert(key.as_slice(), record.encode(&key).as_slice())?;
                }
                Ok(())
            }
            Change::Names(path, after, until, names) => {
                self.list(path, after, until.as_deref(), names)
            }
            Change::Listed(path, version) => {
                let value = sealed(path, [&[0; 8], version.as_slice()].concat());
                self.listed.insert(path.as_slice(), value.as_slice())?;
                Ok(())
            }
            Change::Acl(path, kind, acl) => {
                let key = joined(path, 0, &[*kind]);
                let mut value = vec![0; 8];
                value.push(u8::from(acl.is_some()));
                value.extend_from_slice(acl.as_deref().unwrap_or_default());
                self.acls
                    .insert(key.as_slice(), sealed(&key, value).as_slice())?;
                Ok(())
            }
        }
    }

    fn known(&self, key: &[u8]) -> Done<Option<Record>> {
        let value = self.names.get(key)?;
        Ok(value.and_then(|value| Record::decode(key, value.value())))
    }

    fn put(&mut self, key: &[u8], path: &[u8], record: &Record) -> Done<()> {
        let before = self.known(key)?;
        let mut record = record.clone();
        if let Some(before) = before {
            let same = before.kind() == record.kind();
            let was_directory = before.kind() == FileType::Directory;
            if same && !record.whole {
                // Nothing new.
                return Ok(());
            }
            if same && record.target.is_empty() && before.ctime == record.ctime {
                record.target = before.target;
            }
            if !same && was_directory {
                self.gone(path)?;
            }
        }
        self.names.insert(key, record.encode(key).as_slice())?;
        Ok(())
    }

    fn gone(&mut self, path: &[u8]) -> Done<()> {
        let key = key_of(path);
        let before = self.known(&key)?;
        self.names.remove(key.as_slice())?;
        let (start, end) = inside(path);
        self.acls
            .retain_in::<&[u8], _>(start.as_slice()..end.as_slice(), |_, _| false)?;
        if before.is_some_and(|before| before.kind() != FileType::Directory) {
            return Ok(());
        }
        self.listed.remove(path)?;
        for (start, end) in [inside(path), below(path)] {
            let range = start.as_slice()..end.as_slice();
            self.names
                .retain_in::<&[u8], _>(range.clone(), |_, _| false)?;
            self.listed
                .retain_in::<&[u8], _>(range.clone(), |_, _| false)?;
            self.acls.retain_in::<&[u8], _>(range, |_, _| false)?;
        }
        Ok(())
    }

    fn list(
        &mut self,
        path: &[u8],
        after: &[u8],
        until: Option<&[u8]>,
        names: &[Named],
    ) -> Done<()> {
        let (start, end) = inside(path);
        let from = [&start, after].concat();
        // The last name is in it: what follows it is not.
        let to = until.map_or(end, |until| [&start, until, b"\0"].concat());
        let there: HashSet<&[u8]> = names.iter().map(|(name, _, _)| name.as_slice()).collect();
        let mut stale = Vec::new();
        for entry in self.names.range::<&[u8]>(from.as_slice()..to.as_slice())? {
            let (key, _) = entry?;
            let name = key.value().get(start.len()..).unwrap_or_default();
            if !name.is_empty() && name != after && !there.contains(name) {
                stale.push(child(path, name));
            }
        }
        for path in stale {
            self.gone(&path)?;
        }
        for (name, kind, ino) in names {
            let path = child(path, name);
            self.put(&key_of(&path), &path, &Record::bare(*kind, *ino))?;
        }
        Ok(())
    }
}
