//! A file or block device that serves as a disk, shared by all cores.
//!
//! Invariants:
//! - Only one process, and only one medium in it, has a file open as a disk: an exclusive lock
//!   (`flock`) says so. A block device is also claimed from the kernel (`O_EXCL`), which refuses what
//!   is mounted, swapped to or part of another device.
//! - Who reads or writes a file as a whole, an image say, takes the same lock meanwhile ([`Locked`]): no disk
//!   is written over, and none is made of what is being written.
//! - Reads and writes bypass the page cache (`O_DIRECT`) unless buffered I/O was asked for.
//! - The size is fixed from opening on. A new file is sparse: its blocks read as zeroes and take no
//!   space until they are written.

use std::{
    fs::{File, OpenOptions},
    ops::Deref,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::{
    fs::{AtFlags, FlockOperation, OFlags, StatxFlags},
    io::Errno,
};
use tracing::warn;

use super::{
    atomicity,
    bad::BadBlocks,
    call::Action,
    claims::{Claim, Claims},
    error::{FileError, FileErrorReason},
    flushes::Flushes,
    proc::{DeviceNumber, Holder, device_users, filesystem_type, lock_holder, queue_limits},
};
use crate::{disk::DiskInfo, units::BlockSize};

/// How often, and how far apart, a medium is tried again whose holder has died.
const DEAD_HOLDER_TRIES: usize = 250;
const DEAD_HOLDER_PAUSE: Duration = Duration::from_millis(20);

/// Whether reads and writes go through the kernel's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Caching {
    /// They do not; a filesystem that cannot do so is an error.
    #[default]
    Direct,
    /// They do only where the filesystem knows no other way.
    DirectElseBuffered,
    /// They do.
    Buffered,
}

/// How to open a medium.
#[derive(Clone, Copy, Debug)]
pub struct FileMediumOptions {
    /// The size of a block.
    pub block_size: BlockSize,
    /// The size in bytes: a file that exists must have at least as many (and is used whole), one
    /// that is made gets them.
    pub bytes: Option<u64>,
    /// Make the file where it is missing; needs `bytes`.
    pub create: bool,
    /// Whether to go through the page cache.
    pub caching: Caching,
}

impl FileMediumOptions {
    /// An existing medium, past the page cache.
    #[must_use]
    pub fn new(block_size: BlockSize) -> Self {
        Self {
            block_size,
            bytes: None,
            create: false,
            caching: Caching::Direct,
        }
    }
}

/// A file or block device that serves as a disk.
#[derive(Debug)]
pub struct FileMedium {
    path: PathBuf,
    file: Locked,
    info: DiskInfo,
    direct: bool,
    /// `None` where the device itself makes a block atomic.
    claims: Option<Claims>,
    pub(super) flushes: Flushes,
    /// `None` for a block device.
    pub(super) bad: Option<BadBlocks>,
    /// The medium cannot free a range, as far as is known.
    no_punch: AtomicBool,
    /// The medium cannot zero a range by itself, as far as is known.
    no_zero_range: AtomicBool,
    /// How many operations found no space beneath it.
    refused: AtomicU64,
}

impl FileMedium {
    /// Opens a medium, or makes it.
    ///
    /// # Errors
    /// See [`FileErrorReason`].
    pub fn open(path: &Path, options: FileMediumOptions) -> Result<Arc<Self>, FileError> {
        let fail = |reason| FileError::new(path, reason);
        let (file, device) = open_or_create(path, options)?;
        let file = Locked::take(path, file)?;
        let bytes = size(path, &file, device, options)?;
        let block = options.block_size.bytes();
        if !device && !bytes.is_multiple_of(block as u64) {
            return Err(fail(FileErrorReason::NotWholeBlocks { bytes, block }));
        }
        let blocks = options.block_size.blocks_in(bytes);
        if blocks == 0 {
            return Err(fail(FileErrorReason::Empty));
        }
        let unit = match options.caching {
            Caching::Buffered => None,
            _ => go_direct(path, &file, device, options)?,
        };
        let metadata = file
            .metadata()
            .map_err(FileError::system(path, "look at it"))?;
        let (volatile_cache, space_unit, whole) = if device {
            let number = DeviceNumber::from_raw(metadata.rdev());
            let limits = queue_limits(number);
            // Of a device that tells nothing, its logical sector is known at least.
            let sector = unit.map_or(0, |unit| unit.atomic);
            let whole = atomicity::of_device(number).max(sector);
            (limits.volatile_cache, limits.discard_bytes, whole)
        } else {
            let whole = atomicity::of_file(&file);
            (true, Some(metadata.blksize()), whole)
        };
        let bad = if device {
            None
        } else {
            Some(BadBlocks::open(path, options.block_size, blocks)?)
        };
        let granularity = |bytes: u64| u32::try_from(bytes / block as u64).unwrap_or(1).max(1);
        Ok(Arc::new(Self {
            path: path.to_owned(),
            file,
            info: DiskInfo {
                block_size: options.block_size,
                blocks,
                volatile_cache,
                deallocate_granularity: space_unit.map(granularity),
                write_uncorrectable: bad.is_some(),
                atomic_write_bytes: whole,
            },
            direct: unit.is_some(),
            // A device writes and reads one of its own units as a whole.
            claims: match unit {
                Some(unit) if unit.atomic as usize >= block => None,
                _ => Some(Claims::new(blocks)),
            },
            flushes: Flushes::default(),
            bad,
            no_punch: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        }))
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the disks over it are.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        self.info
    }

    /// An operation found no space beneath the medium: the operator is told, ever more rarely.
    pub(super) fn tell_of_no_space(&self) {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        // The first one, the 1,024th, ...
        if refused.is_power_of_two() && refused.ilog2().is_multiple_of(10) {
            warn!(
                path = %self.path.display(), refused,
                "no space is left beneath the disk: what it holds is safe, writes that need more are refused; \
                 make room in its file system"
            );
        }
    }

    /// True where reads and writes bypass the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.0.as_fd()
    }

    /// What an operation has to claim before it moves these bytes.
    pub(super) fn claim(&self, action: Action, offset: u64, len: u64) -> Claim {
        if self.claims.is_none() {
            return Claim::default();
        }
        let size = self.info.block_size;
        let count = u32::try_from(size.blocks_in(len)).expect("at most a transfer's blocks");
        Claim::on(size.blocks_in(offset), count, action != Action::Read)
    }

    pub(super) fn take_claim(&self, claim: &mut Claim) -> bool {
        self.claims.as_ref().is_none_or(|claims| claims.take(claim))
    }

    pub(super) fn release_claim(&self, claim: &mut Claim) {
        if let Some(claims) = &self.claims {
            claims.release(claim);
        }
    }

    /// False where the medium has said that it cannot do this to a range.
    pub(super) fn knows(&self, action: Action) -> bool {
        !self.unknown(action).load(Ordering::Relaxed)
    }

    pub(super) fn does_not_know(&self, action: Action) {
        self.unknown(action).store(true, Ordering::Relaxed);
    }

    fn unknown(&self, action: Action) -> &AtomicBool {
        match action {
            Action::ZeroRange => &self.no_zero_range,
            _ => &self.no_punch,
        }
    }
}

/// A file that nobody else has open as a disk, and nobody will while this is there.
#[derive(Debug)]
pub struct Locked(File);

impl Locked {
    /// For who writes to it: nobody else has the lock.
    ///
    /// # Errors
    /// [`FileErrorReason::Locked`] where it is a disk, or is read or written by who has the lock.
    pub fn take(path: &Path, file: File) -> Result<Self, FileError> {
        Self::lock(path, file, FlockOperation::NonBlockingLockExclusive)
    }

    /// For who only reads it: others may, too.
    ///
    /// # Errors
    /// As those of [`Locked::take`], but for readers.
    pub fn share(path: &Path, file: File) -> Result<Self, FileError> {
        Self::lock(path, file, FlockOperation::NonBlockingLockShared)
    }

    /// Where the holder has died, waits a little: the kernel lets go of what a killed process had in
    /// its io_uring only after the process has gone.
    fn lock(path: &Path, file: File, how: FlockOperation) -> Result<Self, FileError> {
        let mut tries = 0;
        loop {
            match rustix::fs::flock(&file, how) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(FileError::system(path, "lock it")(error)),
            }
            let holder = file.metadata().ok().and_then(|metadata| {
                lock_holder(DeviceNumber::from_raw(metadata.dev()), metadata.ino())
            });
            tries += 1;
            if tries > DEAD_HOLDER_TRIES || holder.as_ref().is_some_and(Holder::is_alive) {
                return Err(FileError::new(path, FileErrorReason::Locked { holder }));
            }
            pause();
        }
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Also where somebody else still has the file open, as a dying ring has, or a child of this
        // process that is being started.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opens the file, or makes it; whether it is a block device.
fn open_or_create(path: &Path, options: FileMediumOptions) -> Result<(File, bool), FileError> {
    let fail = |reason| FileError::new(path, reason);
    let mut how = OpenOptions::new();
    how.read(true).write(true);
    let device = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => false,
        Ok(metadata) if metadata.file_type().is_block_device() => true,
        Ok(_) => return Err(fail(FileErrorReason::NotADisk)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !options.create || options.bytes.is_none() {
                return Err(fail(FileErrorReason::Missing));
            }
            how.create(true).mode(0o600);
            false
        }
        Err(error) => return Err(FileError::system(path, "look at it")(error)),
    };
    if device {
        how.custom_flags(OFlags::EXCL.bits().cast_signed());
    }
    let mut tries = 0;
    loop {
        match how.open(path) {
            Ok(file) => return Ok((file, device)),
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
            Err(error) => return Err(FileError::system(path, "open it")(error)),
        }
        let number = std::fs::metadata(path).map(|metadata| metadata.rdev());
        let users = number.map(|number| device_users(DeviceNumber::from_raw(number)));
        let users = users.unwrap_or_default();
        tries += 1;
        // As for the lock: a killed process may still hold it.
        if tries > DEAD_HOLDER_TRIES || !users.is_empty() {
            return Err(fail(FileErrorReason::DeviceInUse { users }));
        }
        pause();
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a medium is opened by the control path, which may block"
)]
fn pause() {
    std::thread::sleep(DEAD_HOLDER_PAUSE);
}

/// The medium's bytes. Gives a new file its size.
fn size(
    path: &Path,
    file: &File,
    device: bool,
    options: FileMediumOptions,
) -> Result<u64, FileError> {
    let mut bytes = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))
        .map_err(FileError::system(path, "find out its size"))?;
    if let Some(wanted) = options.bytes {
        if bytes == 0 && !device && options.create {
            rustix::fs::ftruncate(file, wanted)
                .map_err(FileError::system(path, "give it its size"))?;
            make_durable(path, file).map_err(FileError::system(path, "make it durable"))?;
            bytes = wanted;
        }
        if bytes < wanted {
            return Err(FileError::new(
                path,
                FileErrorReason::TooSmall {
                    bytes,
                    needed: wanted,
                },
            ));
        }
    }
    Ok(bytes)
}

/// A new file survives a loss of power once it and its folder are flushed.
fn make_durable(path: &Path, file: &File) -> std::io::Result<()> {
    file.sync_all()?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// What direct I/O asks for.
#[derive(Clone, Copy)]
struct DirectUnit {
    /// Bytes that the device reads and writes as a whole; 0 where that is not known.
    atomic: u32,
    /// Bytes that offsets, lengths and addresses are multiples of; 0 where that is not known.
    alignment: u32,
}

/// Switches to direct I/O. `None` where it stays buffered, as allowed.
fn go_direct(
    path: &Path,
    file: &File,
    device: bool,
    options: FileMediumOptions,
) -> Result<Option<DirectUnit>, FileError> {
    let block = options.block_size.bytes();
    let flags = rustix::fs::fcntl_getfl(file).map_err(FileError::system(path, "look at it"))?;
    let otherwise = |reason| {
        // What was set is taken back.
        let _ = rustix::fs::fcntl_setfl(file, flags);
        match options.caching {
            Caching::Direct => Err(FileError::new(path, reason)),
            _ => Ok(None),
        }
    };
    let set = rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT);
    let unit = match set {
        Ok(()) => direct_unit(path, file, device)?,
        Err(_) => None,
    };
    let Some(unit) = unit else {
        let filesystem = file
            .metadata()
            .ok()
            .and_then(|metadata| filesystem_type(DeviceNumber::from_raw(metadata.dev())));
        return otherwise(FileErrorReason::NoDirectIo { filesystem });
    };
    let refused = || {
        let unit = BlockSize::B4096.bytes() as u32;
        FileErrorReason::UnitTooLarge { unit, block }
    };
    if unit.alignment as usize > block {
        let unit = unit.alignment;
        return otherwise(FileErrorReason::UnitTooLarge { unit, block });
    }
    if unit.alignment == 0 && !reads_one_block(file, block) {
        return otherwise(refused());
    }
    Ok(Some(unit))
}

/// What direct I/O on the file asks for; `None` where there is none.
fn direct_unit(path: &Path, file: &File, device: bool) -> Result<Option<DirectUnit>, FileError> {
    if device {
        let sector = rustix::fs::ioctl_blksszget(file)
            .map_err(FileError::system(path, "find out its sectors' size"))?;
        return Ok(Some(DirectUnit {
            atomic: sector,
            alignment: sector,
        }));
    }
    let asked = StatxFlags::DIOALIGN;
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, asked) {
        Ok(told) if told.stx_mask & asked.bits() != 0 => {
            let (offset, memory) = (told.stx_dio_offset_align, told.stx_dio_mem_align);
            Ok((offset != 0).then_some(DirectUnit {
                atomic: offset,
                alignment: offset.max(memory),
            }))
        }
        // Linux before 6.1, or a filesystem that does not tell.
        _ => Ok(Some(DirectUnit {
            atomic: 0,
            alignment: 0,
        })),
    }
}

/// Tries to read a block that is aligned to no more than itself.
fn reads_one_block(file: &File, block: usize) -> bool {
    #[repr(align(4096))]
    struct Page([u8; 8192]);
    let mut page = Box::new(Page([0; 8192]));
    let bytes = &mut page.0[block % 4096..][..block];
    rustix::io::pread(file, bytes, block as u64) != Err(Errno::INVAL)
}
