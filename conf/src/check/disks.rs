//! Disks: their names, sizes and blocks, and what of them is on the machine.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use crate::appliance::{BlockSize, Disk, DiskKind, DriveName};
use crate::diagnostic::{Draft, Sink, Span};
use crate::limits::DISK_SIZE_MAX;
use crate::machine::{FileIdentity, Machine, PathState};
use crate::reader::{At, Field};
use crate::schema::{RawAppliance, RawDisk, RawKind};
use crate::units::Size;

pub(super) fn check(
    raw: &RawAppliance,
    machine: &dyn Machine,
    sink: &mut Sink,
) -> Option<Vec<Disk>> {
    names(raw, sink);
    uuids(raw, sink);
    memory(raw, machine, sink);
    let mut paths = Paths::default();
    let mut drives = HashMap::new();
    let members: HashSet<&str> = raw
        .arrays
        .iter()
        .flat_map(|array| array.disks())
        .map(|name| name.value.as_str())
        .collect();
    let checked = raw.disks.iter().map(|disk| {
        let may_miss = disk
            .name
            .value()
            .is_some_and(|name| members.contains(name.as_str()));
        let kind = disk.kind.as_ref().and_then(|kind| match kind {
            RawKind::Ram { size } => Some(DiskKind::Ram {
                size: blocks(disk, size, sink)?,
            }),
            RawKind::Null { size } => Some(DiskKind::Null {
                size: blocks(disk, size, sink)?,
            }),
            RawKind::Device { path } => {
                device(disk, path.given()?, may_miss, machine, &mut paths, sink)
            }
            RawKind::Nvme { drive, nsid } => nvme(drive, nsid, &mut drives, sink),
            RawKind::File { .. } => file(disk, raw, may_miss, machine, &mut paths, sink),
        });
        let kind = kind?;
        let of_its_own = !matches!(kind, DiskKind::Ram { .. } | DiskKind::Null { .. });
        let block_size = disk.block_size.value().copied();
        Some(Disk {
            name: disk.name.value()?.clone(),
            block_size: if of_its_own {
                block_size
            } else {
                Some(block_size.unwrap_or(BlockSize::B4096))
            },
            uuid: disk.uuid.value().copied(),
            kind,
        })
    });
    // Each is looked at before the first that failed ends it.
    let checked: Vec<Option<Disk>> = checked.collect();
    checked.into_iter().collect()
}

fn names(raw: &RawAppliance, sink: &mut Sink) {
    let mut seen: HashMap<&str, Option<Span>> = HashMap::new();
    for name in raw.disks.iter().filter_map(|disk| disk.name.given()) {
        if let Some(first) = seen.get(name.value.as_str()) {
            let draft = Draft::error(format!("there are two disks named `{}`", name.value));
            sink.push(
                draft
                    .at(name.span, "again here")
                    .and_at(*first, "first here"),
            );
        } else {
            seen.insert(&name.value, name.span);
        }
    }
}

fn uuids(raw: &RawAppliance, sink: &mut Sink) {
    let mut seen = HashMap::new();
    for uuid in raw.disks.iter().filter_map(|disk| disk.uuid.given()) {
        if let Some(first) = seen.insert(uuid.value, uuid.span) {
            let draft = Draft::error("two disks have the same UUID").at(uuid.span, "again here");
            sink.push(
                draft
                    .and_at(first, "first here")
                    .help("`uuidgen` makes another"),
            );
        }
    }
}

/// Memory disks and the arena have to fit the machine together.
fn memory(raw: &RawAppliance, machine: &dyn Machine, sink: &mut Sink) {
    let Some(there) = machine.memory_bytes() else {
        return;
    };
    let mut taken = raw.reactor.memory.value.bytes();
    if taken > there {
        // That is said of the arena already.
        return;
    }
    for disk in &raw.disks {
        let Some(RawKind::Ram {
            size: Field::Given(size),
        }) = &disk.kind
        else {
            continue;
        };
        taken = taken.saturating_add(size.value.bytes());
        if taken > there {
            let message = "the memory disks do not fit into the memory of this machine";
            let label = format!(
                "{} in all up to here, with the memory of the reactors",
                super::roughly(taken)
            );
            let draft = Draft::error(message).at(size.span, label);
            sink.push(draft.help(format!("the machine has {}", super::roughly(there))));
            return;
        }
    }
}

/// The size, if it is given and a whole number of blocks.
fn blocks(disk: &RawDisk, size: &Field<Size>, sink: &mut Sink) -> Option<Size> {
    let size = size.given()?;
    let block_size = disk.block_size.value().copied().unwrap_or(BlockSize::B4096);
    let block = block_size.bytes() as u64;
    if size.value.bytes() == 0 || size.value > DISK_SIZE_MAX {
        let draft = Draft::error(format!("a disk cannot have {} bytes", size.value.bytes()));
        sink.push(draft.at(
            size.span,
            format!("expected {block} bytes to {DISK_SIZE_MAX}"),
        ));
        return None;
    }
    if size.value.bytes().is_multiple_of(block) {
        return Some(size.value);
    }
    let message = format!(
        "{} bytes are no whole number of blocks of {block} bytes",
        size.value.bytes()
    );
    let draft =
        Draft::error(message).at(size.span, format!("expected a multiple of {block} bytes"));
    let below = Size::from_bytes(size.value.bytes() / block * block);
    let above = Size::from_bytes(size.value.bytes() / block * block + block);
    let help = match below.bytes() {
        0 => format!("the next is \"{above}\""),
        _ => format!("the nearest are \"{below}\" and \"{above}\""),
    };
    sink.push(draft.help(help));
    None
}

fn file(
    disk: &RawDisk,
    raw: &RawAppliance,
    may_miss: bool,
    machine: &dyn Machine,
    paths: &mut Paths,
    sink: &mut Sink,
) -> Option<DiskKind> {
    let Some(RawKind::File {
        path,
        size,
        create,
        span,
    }) = &disk.kind
    else {
        return None;
    };
    let whole_blocks = size.is_absent() || blocks(disk, size, sink).is_some();
    let path = path.given()?;
    let full = super::disk_path(&raw.disk_dir, &path.value);
    let state = match machine.path(&full) {
        // The data folder is made at the start.
        PathState::MissingFolder if full.parent() == Some(&*normal(&raw.data_dir.value)) => {
            PathState::Missing
        }
        state => state,
    };
    paths.once(&full, path.span, &state, sink);
    let draft = match &state {
        // A start was cut off between making the file and giving it its size: the next one does.
        PathState::File { size_bytes: 0, .. } if create.value && size.given().is_some() => None,
        PathState::File { size_bytes, .. } => length(disk, size, *size_bytes),
        PathState::Missing | PathState::MissingFolder if may_miss && !create.value => {
            sink.push(absent_member(&full, path.span));
            None
        }
        PathState::Missing if !create.value => Some(
            Draft::error(format!("the file `{}` does not exist", full.display()))
                .at(path.span, "expected a file")
                .help("say `create = true` and a size to have it created, sparse"),
        ),
        PathState::Missing if size.is_absent() => Some(
            Draft::error("a file that is created needs a size")
                .at(*span, format!("`{}` does not exist yet", full.display()))
                .help("add `size = \"8GiB\"`"),
        ),
        PathState::Missing => None,
        other => Some(no_file(other, &full, path.span)),
    };
    if let Some(draft) = draft {
        sink.push(draft);
        return None;
    }
    if let PathState::File { size_bytes, .. } = state {
        larger(size, size_bytes, sink);
    }
    let kind = DiskKind::File {
        path: full,
        size: size.value().copied(),
        create: create.value,
    };
    (whole_blocks && !matches!(size, Field::Wrong)).then_some(kind)
}

/// An array may do without it.
fn absent_member(full: &Path, span: Option<Span>) -> Draft {
    let draft = Draft::warning(format!("`{}` does not exist", full.display()));
    draft.at(span, "the array starts without it, if it can")
}

/// What is wrong with a path where there can be no file.
fn no_file(state: &PathState, full: &Path, span: Option<Span>) -> Draft {
    let shown = full.display();
    let wrong = |what: &str| Draft::error(format!("`{shown}` {what}")).at(span, "expected a file");
    match state {
        PathState::BlockDevice { .. } => {
            wrong("is a block device").help(format!("write `device = {{ path = \"{shown}\" }}`"))
        }
        PathState::Folder => wrong("is a folder"),
        PathState::Other(what) => wrong(&format!("is {what}")),
        PathState::Unreadable(why) => wrong(&format!("cannot be used: {why}")),
        PathState::File { .. } | PathState::Missing | PathState::MissingFolder => {
            let folder = full.parent().unwrap_or(Path::new("/")).display();
            let draft = Draft::error(format!("the folder `{folder}` does not exist")).at(span, "");
            draft.help(format!(
                "`mkdir -p {folder}`, or mount what should be there"
            ))
        }
    }
}

/// What is wrong with the length of a file that exists.
fn length(disk: &RawDisk, size: &Field<Size>, size_bytes: u64) -> Option<Draft> {
    let there = Size::from_bytes(size_bytes);
    let path_span = match &disk.kind {
        Some(RawKind::File { path, .. }) => path.given().and_then(|path| path.span),
        _ => None,
    };
    match size {
        Field::Given(size) if size.value > there => Some(
            Draft::error(format!("the file is too small: it has {there} of {}", size.value))
                .at(size.span, format!("expected at most {there}"))
                .help("grow the file first (`truncate --size`), or leave `size` out to take the file as it is"),
        ),
        Field::Wrong => None,
        // Whatever its size is said to be, a file is used whole.
        Field::Given(_) | Field::Absent => {
            let block_size = disk.block_size.value().copied().unwrap_or(BlockSize::B4096);
            let block = block_size.bytes() as u64;
            if size_bytes > 0 && size_bytes.is_multiple_of(block) {
                return None;
            }
            let message = match size_bytes {
                0 => "the file is empty".to_owned(),
                _ => format!("the file has {size_bytes} bytes: no whole number of blocks of {block} bytes"),
            };
            let draft = Draft::error(message).at(path_span, format!("expected a multiple of {block} bytes"));
            let whole = size_bytes.next_multiple_of(block).max(block);
            Some(draft.help(format!("grow the file, as by `truncate --size {whole}`")))
        }
    }
}

fn larger(size: &Field<Size>, size_bytes: u64, sink: &mut Sink) {
    let Some(size) = size.given().filter(|size| size.value.bytes() < size_bytes) else {
        return;
    };
    let there = Size::from_bytes(size_bytes);
    let draft = Draft::warning(format!(
        "the file is larger than its `size`: it has {there}"
    ));
    let label = "a file that exists is served whole, so that no disk shrinks";
    sink.push(
        draft
            .at(size.span, label)
            .help(format!("say size = \"{there}\", or make another file")),
    );
}

/// Whether the drive is there, and corebay's, shows at the start alone: checking takes no drive from
/// anybody.
fn nvme(
    drive: &Field<DriveName>,
    nsid: &Field<u32>,
    drives: &mut HashMap<(DriveName, Option<u32>), Option<Span>>,
    sink: &mut Sink,
) -> Option<DiskKind> {
    let drive = drive.given()?;
    let named = (drive.value.clone(), nsid.value().copied());
    if let Some(first) = drives.get(&named) {
        let draft = Draft::error(format!("two disks are the same namespace of {}", named.0));
        sink.push(
            draft
                .at(drive.span, "again here")
                .and_at(*first, "first here")
                .help("name another `nsid`, or export one disk twice"),
        );
        return None;
    }
    drives.insert(named.clone(), drive.span);
    let (drive, nsid) = named;
    Some(DiskKind::Nvme { drive, nsid })
}

fn device(
    disk: &RawDisk,
    path: &At<PathBuf>,
    may_miss: bool,
    machine: &dyn Machine,
    paths: &mut Paths,
    sink: &mut Sink,
) -> Option<DiskKind> {
    let full = normal(&path.value);
    let shown = full.display();
    let state = machine.path(&full);
    paths.once(&full, path.span, &state, sink);
    let wrong = |what: &str| {
        Draft::error(format!("`{shown}` {what}")).at(path.span, "expected a block device")
    };
    let draft = match state {
        PathState::BlockDevice {
            size_bytes,
            block_size,
            used_by,
            ..
        } => {
            let draft = device_in_use(&shown.to_string(), path, used_by);
            match draft.or_else(|| device_blocks(disk, path, size_bytes, block_size)) {
                Some(draft) => draft,
                None => return Some(DiskKind::Device { path: full }),
            }
        }
        PathState::Missing | PathState::MissingFolder if may_miss => {
            sink.push(absent_member(&full, path.span));
            return Some(DiskKind::Device { path: full });
        }
        PathState::Missing | PathState::MissingFolder => {
            wrong("does not exist").help("`lsblk --paths` lists the block devices of this machine")
        }
        PathState::File { .. } => {
            wrong("is a file").help(format!("write `file = {{ path = \"{shown}\" }}`"))
        }
        PathState::Folder => wrong("is a folder"),
        PathState::Other("a character device") if is_controller(&full) => {
            wrong("is the controller, not the drive").help(format!("did you mean \"{shown}n1\"?"))
        }
        PathState::Other(what) => wrong(&format!("is {what}")),
        PathState::Unreadable(why) => wrong(&format!("cannot be used: {why}")),
    };
    sink.push(draft);
    None
}

fn device_in_use(shown: &str, path: &At<PathBuf>, used_by: Option<String>) -> Option<Draft> {
    let used_by = used_by?;
    let draft = Draft::error(format!("`{shown}` is in use: {used_by}")).at(path.span, used_by);
    Some(
        draft.help(
            "exporting it would destroy what is on it: free it first, or name another device",
        ),
    )
}

fn device_blocks(disk: &RawDisk, path: &At<PathBuf>, size_bytes: u64, own: u32) -> Option<Draft> {
    let Some(own) = BlockSize::from_bytes(u64::from(own)) else {
        let message = format!("the device has blocks of {own} bytes");
        return Some(Draft::error(message).at(path.span, "expected blocks of 512 or 4096 bytes"));
    };
    let block = match disk.block_size.given() {
        Some(block_size) if block_size.value.bytes() < own.bytes() => {
            let message = format!(
                "the device cannot write blocks of {} bytes",
                block_size.value
            );
            let draft = Draft::error(message).at(
                block_size.span,
                format!("expected {own}: the device's own block"),
            );
            return Some(draft.help("leave `block_size` out to take the device's own"));
        }
        Some(block_size) => block_size.value,
        None => own,
    };
    if size_bytes == 0 {
        return Some(Draft::error("the device has no capacity").at(path.span, "0 bytes"));
    }
    if !size_bytes.is_multiple_of(block.bytes() as u64) {
        let message = format!(
            "the device has {size_bytes} bytes: no whole number of blocks of {block} bytes"
        );
        let draft =
            Draft::error(message).at(path.span, format!("expected a multiple of {block} bytes"));
        return Some(draft.help(format!("say block_size = {own}, as the device's own")));
    }
    None
}

/// `/dev/nvme0` and its like: the character device of a controller.
fn is_controller(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let number = name.strip_prefix("nvme").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// The files and devices of disks so far: each may be one disk only.
#[derive(Default)]
struct Paths {
    by_name: HashMap<PathBuf, Option<Span>>,
    by_identity: HashMap<FileIdentity, Option<Span>>,
}

impl Paths {
    fn once(&mut self, path: &Path, span: Option<Span>, state: &PathState, sink: &mut Sink) {
        let identity = match state {
            PathState::File { identity, .. } | PathState::BlockDevice { identity, .. } => {
                Some(*identity)
            }
            _ => None,
        };
        let same_name = self.by_name.insert(path.to_owned(), span);
        let same_file = identity.and_then(|identity| self.by_identity.insert(identity, span));
        let Some(first) = same_name.or(same_file) else {
            return;
        };
        let draft = Draft::error(format!("two disks are made of `{}`", path.display()));
        let draft = draft.at(span, "again here").and_at(first, "first here");
        sink.push(draft.help("each would overwrite what the other wrote: leave one out"));
    }
}

/// The path without `.` and doubled slashes; `..` stays, for only the file system knows it.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path
        .components()
        .filter(|component| *component != Component::CurDir)
    {
        normal.push(component);
    }
    normal
}
