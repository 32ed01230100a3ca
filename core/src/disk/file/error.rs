//! Why a file or block device cannot serve as a disk, in words that say what to do about it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::proc::Holder;

/// A file or block device could not be opened as a disk.
#[derive(Debug)]
pub struct FileError {
    /// Which one.
    pub path: PathBuf,
    /// Why.
    pub reason: FileErrorReason,
}

/// Why a file or block device could not be opened as a disk.
#[derive(Debug)]
pub enum FileErrorReason {
    /// It does not exist, and was not to be made.
    Missing,
    /// It is neither a regular file nor a block device.
    NotADisk,
    /// It could not be opened, or a system call on it failed.
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else uses it as a disk.
    Locked {
        /// Who, if that could be found out.
        holder: Option<Holder>,
    },
    /// The block device is mounted, swapped to, or part of another device.
    DeviceInUse {
        /// What uses it, as far as that could be found out.
        users: Vec<String>,
    },
    /// It has not a single block.
    Empty,
    /// It is smaller than the size that was asked for.
    TooSmall {
        /// Its size in bytes.
        bytes: u64,
        /// The size that was asked for, in bytes.
        needed: u64,
    },
    /// Its size is not a whole number of blocks.
    NotWholeBlocks {
        /// Its size in bytes.
        bytes: u64,
        /// The bytes of a block.
        block: usize,
    },
    /// Its filesystem has no direct I/O (`O_DIRECT`).
    NoDirectIo {
        /// The filesystem's type, if it is known.
        filesystem: Option<String>,
    },
    /// It can only be read and written in units larger than a block.
    UnitTooLarge {
        /// The unit in bytes.
        unit: u32,
        /// The bytes of a block.
        block: usize,
    },
    /// The list of blocks that were written uncorrectable, beside it, cannot be used.
    BadBlockList {
        /// The list's file.
        list: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl FileError {
    pub(super) fn new(path: &Path, reason: FileErrorReason) -> Self {
        Self {
            path: path.to_owned(),
            reason,
        }
    }

    /// An error from a system call, for `map_err`.
    pub(super) fn system<E: Into<io::Error>>(
        path: &Path,
        doing: &'static str,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self {
            path,
            reason: FileErrorReason::System {
                doing,
                source: source.into(),
            },
        }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.reason {
            FileErrorReason::Missing => write!(f, "there is no such file; give a size to make it"),
            FileErrorReason::NotADisk => write!(f, "this is neither a file nor a block device"),
            FileErrorReason::System { doing, source } => write!(f, "cannot {doing}: {source}"),
            FileErrorReason::Locked { holder: None } => {
                write!(
                    f,
                    "another process uses it as a disk (`lsof` or `fuser` tells which); end that \
                     one, or name another file"
                )
            }
            FileErrorReason::Locked {
                holder: Some(holder),
            } => {
                write!(f, "{holder} uses it as a disk; ")?;
                if holder.is_this_process() {
                    write!(f, "name it once only, or another file")
                } else {
                    let pid = holder.pid;
                    write!(f, "end that one (`kill {pid}`), or name another file")
                }
            }
            FileErrorReason::DeviceInUse { users } => {
                write!(f, "the device is in use: ")?;
                if users.is_empty() {
                    write!(f, "mounted, swapped to, or part of another device")?;
                } else {
                    write!(f, "{}", users.join(", "))?;
                }
                write!(f, "; free it first, or name another device")
            }
            FileErrorReason::Empty => write!(f, "it is empty; give a size to make it that large"),
            FileErrorReason::TooSmall { bytes, needed } => write!(
                f,
                "it has {bytes} bytes, and {needed} are asked for; ask for no more, or enlarge it \
                 with `truncate -s {needed}`"
            ),
            FileErrorReason::NotWholeBlocks { bytes, block } => write!(
                f,
                "its {bytes} bytes are not whole blocks of {block} bytes; use `truncate -s {}`{}",
                bytes.next_multiple_of(*block as u64),
                if bytes.is_multiple_of(512) {
                    ", or blocks of 512 bytes"
                } else {
                    ""
                }
            ),
            FileErrorReason::NoDirectIo { filesystem } => write!(
                f,
                "its filesystem{} has no direct I/O (O_DIRECT), without which corebay cannot promise what a flush \
                 promises; put it on another one, as ext4, XFS or Btrfs",
                filesystem
                    .as_ref()
                    .map(|name| format!(" ({name})"))
                    .unwrap_or_default()
            ),
            FileErrorReason::UnitTooLarge { unit, block } => write!(
                f,
                "it is read and written in units of {unit} bytes, too large for blocks of {block}; \
                 use blocks of {unit} bytes"
            ),
            FileErrorReason::BadBlockList { list, problem } => write!(
                f,
                "the list of its uncorrectable blocks, {}, cannot be used: {problem}; without the \
                 list those blocks would read as if they were good. To accept that, move it away",
                list.display()
            ),
        }
    }
}

impl std::error::Error for FileError {}
