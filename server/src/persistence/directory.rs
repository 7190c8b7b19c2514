//! The segment files of one group: their names, and every call to the file system.
//!
//! `<number>.<kind>` is a sealed segment, `<number>.<kind>.open` the one that is being written. Numbers only
//! rise. Values are as secret here as they are in the origin: directories and files are for their owner only.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use peanut_proto::machine;

use crate::segment::{HEADER_BYTES, Header};

const LOCK: &str = "lock";
const OPEN: &str = "open";
const LINEAGE: &str = "lineage";

/// What a segment has in it. The name of its file says so, since a damaged file cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What was loaded, in the order of time. A record that is lost here is a value that is loaded again.
    Loads,
    /// Writes as well. A record that is lost here may have outdated those before it.
    Writes,
    /// All that the store had when the node was stopped, the hottest first.
    Hottest,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Loads, Kind::Writes, Kind::Hottest];

    fn name(self) -> &'static str {
        match self {
            Kind::Loads => "loads",
            Kind::Writes => "writes",
            Kind::Hottest => "hottest",
        }
    }
}

/// A segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) is_open: bool,
    pub(super) bytes: u64,
    /// When it was written last, in milliseconds since 1970.
    pub(super) modified_ms: u64,
}

impl Segment {
    fn name(&self) -> String {
        let open = if self.is_open { ".open" } else { "" };
        format!("{:020}.{}{open}", self.number, self.kind.name())
    }

    fn of(name: &OsStr) -> Option<Self> {
        let mut parts = name.to_str()?.split('.');
        let number = parts.next().filter(|digits| digits.len() == 20)?.parse().ok()?;
        let kind = parts.next().and_then(|name| Kind::ALL.into_iter().find(|kind| kind.name() == name))?;
        let is_open = match parts.next() {
            None => false,
            Some(OPEN) => true,
            Some(_) => return None,
        };
        parts.next().is_none().then_some(Segment { number, kind, is_open, bytes: 0, modified_ms: 0 })
    }
}

/// The directory of one group, which is this process's alone while it is held.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

impl Directory {
    /// Makes the directory where there is none, and takes it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        make_private(path)?;
        let lock = private().create(true).append(true).open(path.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another process has it"),
            TryLockError::Error(error) => error,
        })?;
        // What an earlier version has left may be open to others.
        close_to_others(&path.join(LOCK), FILE_MODE)?;
        for file in fs::read_dir(path)? {
            let file = file?;
            if Segment::of(&file.file_name()).is_some() {
                close_to_others(&file.path(), FILE_MODE)?;
            }
        }
        Ok(Directory {
            path: path.to_owned(),
            _lock: lock,
            #[cfg(test)]
            faults: super::tests::Faults::default(),
        })
    }

    /// Removes the segments of groups that the node does not have, given the directory that theirs are in:
    /// writes of their keys do not come here while it runs, so they would be outdated when such a group is
    /// back. Gives the groups' names. Others' directories, and those that another process has, are left.
    pub(super) fn remove_others(parent: &Path, has: impl Fn(&OsStr) -> bool) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        let entries = match fs::read_dir(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if has(&entry.file_name()) || !entry.path().join(LOCK).is_file() {
                continue;
            }
            let Ok(directory) = Directory::open(&entry.path()) else { continue };
            let segments = directory.list()?;
            for segment in &segments {
                directory.remove(segment)?;
            }
            if !segments.is_empty() {
                removed.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(removed)
    }

    /// The mark of the last start that had the directory; `None` where there is none.
    pub(super) fn lineage(&self) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(LINEAGE)).ok()?;
        u64::from_str_radix(text.trim(), 16).ok()
    }

    /// Marks the directory with a start.
    pub(super) fn set_lineage(&self, lineage: u64) -> io::Result<()> {
        self.may_write()?;
        let (at, next) = (self.path.join(LINEAGE), self.path.join(format!("{LINEAGE}.next")));
        let mut file = private().create(true).write(true).truncate(true).open(&next)?;
        writeln!(file, "{lineage:016x}")?;
        fs::rename(next, at)
    }

    /// All segments, in the order of their numbers. Other files are none of ours.
    pub(super) fn list(&self) -> io::Result<Vec<Segment>> {
        self.may_fail()?;
        let mut segments = Vec::new();
        for file in fs::read_dir(&self.path)? {
            let file = file?;
            let Some(mut segment) = Segment::of(&file.file_name()) else { continue };
            let metadata = file.metadata()?;
            segment.bytes = metadata.len();
            let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            segment.modified_ms = u64::try_from(modified.as_millis()).unwrap_or(u64::MAX);
            segments.push(segment);
        }
        segments.sort_by_key(|segment| segment.number);
        Ok(segments)
    }

    pub(super) fn read(&self, segment: &Segment) -> io::Result<Vec<u8>> {
        self.may_fail()?;
        fs::read(self.path.join(segment.name()))
    }

    /// The header of a segment, where it has one.
    pub(super) fn header(&self, segment: &Segment) -> Option<Header> {
        self.may_fail().ok()?;
        let mut header = [0; HEADER_BYTES];
        File::open(self.path.join(segment.name())).ok()?.read_exact(&mut header).ok()?;
        Header::read(&header).ok().map(|(header, _)| header)
    }

    /// Begins a segment. Its name is on the disk when this returns.
    pub(super) fn create(&self, number: u64, kind: Kind) -> io::Result<(Segment, File)> {
        self.may_write()?;
        let segment = Segment { number, kind, is_open: true, bytes: 0, modified_ms: 0 };
        let file = private().create_new(true).append(true).open(self.path.join(segment.name()))?;
        self.sync()?;
        Ok((segment, file))
    }

    /// Appends to a segment. The bytes outlive the process when this returns, but not yet the machine.
    pub(super) fn append(&self, (segment, file): &mut (Segment, File), bytes: &[u8]) -> io::Result<()> {
        self.may_write()?;
        file.write_all(bytes)?;
        segment.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Ends a segment: it outlives the machine when this returns.
    pub(super) fn seal(&self, (mut segment, file): (Segment, File)) -> io::Result<Segment> {
        self.may_write()?;
        file.sync_data()?;
        let open = self.path.join(segment.name());
        segment.is_open = false;
        fs::rename(open, self.path.join(segment.name()))?;
        self.sync()?;
        Ok(segment)
    }

    /// Ends a segment that an earlier process has left open, after its first `length` bytes.
    pub(super) fn seal_left(&self, mut segment: Segment, length: u64) -> io::Result<Segment> {
        let file = OpenOptions::new().append(true).open(self.path.join(segment.name()))?;
        if length < segment.bytes {
            file.set_len(length)?;
            segment.bytes = length;
        }
        self.seal((segment, file))
    }

    pub(super) fn remove(&self, segment: &Segment) -> io::Result<()> {
        self.may_fail()?;
        match fs::remove_file(self.path.join(segment.name())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes segments, for good when this returns.
    pub(super) fn forget(&self, segments: &[Segment]) -> io::Result<()> {
        // In the order of their numbers: what outdates others goes after them.
        segments.iter().try_for_each(|segment| self.remove(segment))?;
        self.sync()
    }

    /// Before anything is written.
    fn may_write(&self) -> io::Result<()> {
        machine::may_write()?;
        self.may_fail()
    }

    /// What was removed, renamed or begun outlives the machine when this returns.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.may_fail()?;
        // A directory can be opened for this on Unix only; elsewhere the system sees to it.
        if cfg!(unix) { File::open(&self.path)?.sync_all() } else { Ok(()) }
    }

    #[cfg(test)]
    fn may_fail(&self) -> io::Result<()> {
        self.faults.next()
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "in tests the disk fails when it is told to"
    )]
    fn may_fail(&self) -> io::Result<()> {
        Ok(())
    }
}

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Makes a group's directory, and the one that it is in, for their owner only. One that holds other things
/// than ours is left as it is: the group's is closed all the same.
fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, DIRECTORY_MODE);
    builder.create(path)?;
    close_to_others(path, DIRECTORY_MODE)?;
    if let Some(parent) = path.parent().filter(|parent| is_ours(parent))
        && let Err(error) = close_to_others(parent, DIRECTORY_MODE)
    {
        tracing::warn!("{} stays open to others: {error}", parent.display());
    }
    Ok(())
}

/// Whether there is nothing in a directory but groups' directories.
fn is_ours(directory: &Path) -> bool {
    let is_group = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.path().join(LOCK).exists() || is_empty(&entry.path()))
    };
    fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_group))
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Opens files that are made for their owner only.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, FILE_MODE);
    options
}

#[cfg(unix)]
fn close_to_others(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() || metadata.permissions().mode() & 0o777 == mode {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn close_to_others(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
#[cfg(unix)]
mod modes {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn values_on_the_disk_are_for_their_owner_only_also_what_was_open_before() {
        let dir = tempfile::tempdir().unwrap();
        let (data, group) = (dir.path().join("data"), dir.path().join("data/scores"));
        let directory = Directory::open(&group).unwrap();
        let (segment, file) = directory.create(1, Kind::Loads).unwrap();
        let open = group.join(segment.name());
        assert_eq!([&data, &group].map(|path| mode(path)), [0o700; 2]);
        assert_eq!([&open, &group.join(LOCK)].map(|path| mode(path)), [0o600; 2]);
        let sealed = group.join(directory.seal((segment, file)).unwrap().name());
        assert_eq!(mode(&sealed), 0o600);
        drop(directory);
        for (path, mode) in [(&data, 0o755), (&group, 0o755), (&sealed, 0o644), (&group.join(LOCK), 0o666)] {
            set_mode(path, mode);
        }
        drop(Directory::open(&group).unwrap());
        assert_eq!([&data, &group].map(|path| mode(path)), [0o700; 2]);
        assert_eq!([&sealed, &group.join(LOCK)].map(|path| mode(path)), [0o600; 2]);
    }

    #[test]
    fn a_directory_of_others_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o755);
        fs::write(dir.path().join("theirs"), "").unwrap();
        drop(Directory::open(&dir.path().join("scores")).unwrap());
        assert_eq!((mode(dir.path()), mode(&dir.path().join("scores"))), (0o755, 0o700));
    }
}
