//! I/O commands: checked once, then executed against a core's namespaces.
//!
//! Invariants:
//! - What [`prepare`] lets pass lies on its namespace, fits one transfer, and is known here;
//!   [`execute`] checks only what came with the data.
//! - Everything that changes blocks passes the namespace's write gate.

pub mod fused;
mod range;
mod status;

use std::rc::Rc;

use corebay_core::{
    buffer::Buffer,
    disk::{Cost, Direction, Disk, DiskError, Durability, Space},
    units::Lba,
};
use corebay_nvme::spec::{
    command::{
        Fuse, SubmissionEntry,
        nvm::{self, Copy, DatasetManagement, ReadWrite, WriteZeroes},
    },
    status::Status,
};

pub use status::from_disk;

#[cfg(corebay_fault)]
use crate::fault;
use crate::{
    controller::IoCounters,
    core::Core,
    environment::Environment,
    limits::{COPY_RANGES_MAX, DSM_RANGES_MAX},
    namespace::Namespace,
    queue::{Binding, Done, Operation as QueueOperation, Prepared, Transfer},
};

/// A core's way to a namespace.
pub type Ns<E> = Rc<Namespace<<E as Environment>::Disk, <E as Environment>::Medium>>;

/// Blocks of one fused Compare and Write (ACWU + 1): what every disk keeps whole beside other
/// commands.
pub const FUSED_BLOCKS_MAX: u64 = 1;

/// How often blocks are read where a device does not answer: an array bears the loss of three members, each
/// of which may be found out by a read.
const READS_MAX: usize = 4;

/// Blocks of a namespace.
pub struct Blocks<E: Environment> {
    /// The namespace.
    pub namespace: Ns<E>,
    /// The first block.
    pub at: Lba,
    /// How many.
    pub count: u64,
}

/// A checked I/O command.
pub enum Operation<E: Environment> {
    /// Read.
    Read(Blocks<E>),
    /// Write; possibly the second half of a fused command.
    Write(Blocks<E>, Durability, Fuse),
    /// Compare; possibly the first half of a fused command.
    Compare(Blocks<E>, Fuse),
    /// Flush one namespace, or all (`None`).
    Flush(Option<Ns<E>>),
    /// Write Zeroes.
    WriteZeroes(Blocks<E>, Space, Durability),
    /// Write Uncorrectable.
    WriteUncorrectable(Blocks<E>),
    /// Verify.
    Verify(Blocks<E>),
    /// Dataset Management: so many ranges in the data, to be deallocated or (`false`) only hinted.
    DatasetManagement(Ns<E>, usize, bool),
    /// Copy to this address from so many ranges in the data.
    Copy(Ns<E>, Lba, usize, Durability),
}

impl<E: Environment> Operation<E> {
    /// Its part in a fused command.
    #[must_use]
    pub fn fuse(&self) -> Fuse {
        match self {
            Self::Write(_, _, fuse) | Self::Compare(_, fuse) => *fuse,
            _ => Fuse::Normal,
        }
    }

    /// True where its namespace is limited.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        let namespace = self.namespace();
        namespace.is_some_and(|namespace| namespace.disk.is_limited())
    }

    fn namespace(&self) -> Option<&Ns<E>> {
        match self {
            Self::Read(blocks)
            | Self::Write(blocks, ..)
            | Self::Compare(blocks, _)
            | Self::WriteZeroes(blocks, ..)
            | Self::WriteUncorrectable(blocks)
            | Self::Verify(blocks) => Some(&blocks.namespace),
            Self::Flush(namespace) => namespace.as_ref(),
            Self::DatasetManagement(namespace, ..) | Self::Copy(namespace, ..) => Some(namespace),
        }
    }

    /// Where it counts against limits, and what. What a Copy moves counts once that is known.
    #[must_use]
    pub fn cost(&self) -> Option<(&Ns<E>, Cost)> {
        let (direction, operations, bytes) = match self {
            Self::Read(blocks) | Self::Compare(blocks, _) | Self::Verify(blocks) => {
                (Direction::Read, 1, bytes_of(blocks))
            }
            Self::Write(blocks, ..) => (Direction::Write, 1, bytes_of(blocks)),
            Self::WriteZeroes(..) | Self::WriteUncorrectable(_) => (Direction::Write, 1, 0),
            Self::DatasetManagement(_, ranges, true) | Self::Copy(_, _, ranges, _) => {
                (Direction::Write, *ranges, 0)
            }
            Self::DatasetManagement(_, _, false) | Self::Flush(_) => return None,
        };
        let cost = Cost {
            direction,
            operations: operations as u64,
            bytes: bytes as u64,
        };
        Some((self.namespace()?, cost))
    }

    /// Namespace and blocks, for the commands that can be fused.
    #[must_use]
    pub fn range(&self) -> Option<(u32, Lba, u64)> {
        match self {
            Self::Write(blocks, ..) | Self::Compare(blocks, _) => {
                Some((blocks.namespace.spec.nsid, blocks.at, blocks.count))
            }
            _ => None,
        }
    }
}

/// Checks a command of an I/O queue.
///
/// # Errors
/// The status to answer it with.
pub fn prepare<E: Environment>(
    core: &Core<E>,
    binding: &Binding<E>,
    sqe: &SubmissionEntry,
) -> Result<Prepared<E>, Status> {
    let fuse = check_fuse(sqe)?;
    let check = Check { core, binding, sqe };
    let (operation, transfer) = match sqe.opc {
        nvm::READ => {
            let blocks = check.transfer()?;
            let bytes = bytes_of(&blocks);
            (Operation::Read(blocks), Transfer::ToHost(bytes))
        }
        nvm::WRITE => {
            let blocks = check.writable(check.transfer()?)?;
            let bytes = bytes_of(&blocks);
            let durability = check.durability(ReadWrite::from(sqe).fua);
            (
                Operation::Write(blocks, durability, fuse),
                Transfer::FromHost(bytes),
            )
        }
        nvm::COMPARE => {
            let blocks = check.transfer()?;
            let bytes = bytes_of(&blocks);
            (Operation::Compare(blocks, fuse), Transfer::FromHost(bytes))
        }
        nvm::FLUSH if sqe.nsid.get() == u32::MAX => (Operation::Flush(None), Transfer::None),
        nvm::FLUSH => (Operation::Flush(Some(check.namespace()?)), Transfer::None),
        nvm::WRITE_ZEROES => {
            let command = WriteZeroes::from(sqe);
            let blocks = check.writable(check.blocks()?)?;
            let space = if command.deac {
                Space::Deallocate
            } else {
                Space::Keep
            };
            let durability = check.durability(command.fua);
            (
                Operation::WriteZeroes(blocks, space, durability),
                Transfer::None,
            )
        }
        nvm::WRITE_UNCORRECTABLE => {
            let blocks = check.writable(check.blocks()?)?;
            if !blocks.namespace.spec.info.write_uncorrectable {
                return Err(Status::INVALID_OPCODE.with_dnr());
            }
            (Operation::WriteUncorrectable(blocks), Transfer::None)
        }
        nvm::VERIFY => (Operation::Verify(check.blocks()?), Transfer::None),
        nvm::DATASET_MANAGEMENT => check.dataset_management()?,
        nvm::COPY => check.copy()?,
        _ => return Err(Status::INVALID_OPCODE.with_dnr()),
    };
    if fuse != Fuse::Normal
        && operation
            .range()
            .is_some_and(|(_, _, blocks)| blocks > FUSED_BLOCKS_MAX)
    {
        return Err(Status::ATOMIC_WRITE_UNIT_EXCEEDED.with_dnr());
    }
    Ok(Prepared {
        operation: QueueOperation::Io(operation),
        transfer,
    })
}

fn check_fuse(sqe: &SubmissionEntry) -> Result<Fuse, Status> {
    match (sqe.fuse(), sqe.opc) {
        (Fuse::Normal, _) => Ok(Fuse::Normal),
        (Fuse::First, nvm::COMPARE) => Ok(Fuse::First),
        (Fuse::Second, nvm::WRITE) => Ok(Fuse::Second),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

/// The checks that commands share.
struct Check<'a, E: Environment> {
    core: &'a Core<E>,
    binding: &'a Binding<E>,
    sqe: &'a SubmissionEntry,
}

impl<E: Environment> Check<'_, E> {
    fn namespace(&self) -> Result<Ns<E>, Status> {
        let nsid = self.sqe.nsid.get();
        self.binding.table.get(nsid).ok_or_else(|| {
            if nsid == 0 || nsid > crate::limits::NAMESPACES_MAX {
                Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()
            } else {
                Status::INVALID_FIELD.with_dnr()
            }
        })
    }

    /// The command's blocks (SLBA, NLB), which lie on its namespace.
    fn blocks(&self) -> Result<Blocks<E>, Status> {
        let namespace = self.namespace()?;
        let command = ReadWrite::from(self.sqe);
        let (at, count) = (Lba(command.slba), u64::from(command.blocks));
        if !namespace.disk.info().contains(at, count) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        Ok(Blocks {
            namespace,
            at,
            count,
        })
    }

    /// The same for a command that transfers them.
    fn transfer(&self) -> Result<Blocks<E>, Status> {
        let blocks = self.blocks()?;
        if bytes_of(&blocks) > self.core.limits.transfer_bytes_max {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(blocks)
    }

    fn writable(&self, blocks: Blocks<E>) -> Result<Blocks<E>, Status> {
        check_writable(&blocks.namespace)?;
        Ok(blocks)
    }

    fn durability(&self, fua: bool) -> Durability {
        #[cfg(corebay_fault)]
        let fua = fua && !fault::is(fault::Fault::FuaIgnored);
        let asked = if fua {
            Durability::Durable
        } else {
            Durability::Cached
        };
        now_durable(self.binding, asked)
    }

    fn dataset_management(&self) -> Result<(Operation<E>, Transfer), Status> {
        let namespace = self.namespace()?;
        let command = DatasetManagement::from(self.sqe);
        if command.deallocate {
            check_writable(&namespace)?;
        }
        let ranges = command.ranges;
        if ranges > DSM_RANGES_MAX {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let operation = Operation::DatasetManagement(namespace, ranges, command.deallocate);
        Ok((
            operation,
            Transfer::FromHost(ranges * range::DSM_RANGE_BYTES),
        ))
    }

    fn copy(&self) -> Result<(Operation<E>, Transfer), Status> {
        let namespace = self.namespace()?;
        check_writable(&namespace)?;
        let command = Copy::from(self.sqe);
        if command.desfmt != 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let ranges = command.ranges;
        if ranges > COPY_RANGES_MAX {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
        }
        let durability = self.durability(command.fua);
        let operation = Operation::Copy(namespace, Lba(command.sdlba), ranges, durability);
        Ok((
            operation,
            Transfer::FromHost(ranges * range::COPY_RANGE_BYTES),
        ))
    }
}

fn check_writable<D, M>(namespace: &Namespace<D, M>) -> Result<(), Status> {
    if namespace.spec.is_read_only() {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    Ok(())
}

fn bytes_of<E: Environment>(blocks: &Blocks<E>) -> usize {
    // NLB has 16 bits, so this is at most 2^28.
    usize::try_from(blocks.namespace.spec.info.block_size.bytes_of(blocks.count))
        .unwrap_or(usize::MAX)
}

/// Executes a command whose data, if any, are in `data`.
pub async fn execute<E: Environment>(
    core: &Core<E>,
    binding: &Binding<E>,
    operation: &Operation<E>,
    data: Option<Buffer>,
) -> Done {
    let counters = &binding.counters;
    match (operation, data) {
        (Operation::Read(blocks), Some(data)) => {
            let read = read(core, blocks, data).await;
            IoCounters::add(&counters.reads, 1);
            match read {
                Ok(data) => {
                    IoCounters::add(&counters.read_bytes, data.len() as u64);
                    Done::with_data(data)
                }
                Err(error) => failed(counters, error),
            }
        }
        (Operation::Write(blocks, durability, _), Some(data)) => {
            let written = write(blocks, &data, now_durable(binding, *durability)).await;
            IoCounters::add(&counters.writes, 1);
            match written {
                Ok(()) => {
                    IoCounters::add(&counters.written_bytes, data.len() as u64);
                    Done::SUCCESS
                }
                Err(error) => failed(counters, error),
            }
        }
        (Operation::Compare(blocks, _), Some(data)) => {
            IoCounters::add(&counters.reads, 1);
            range::compare(core, blocks, &data, counters).await.into()
        }
        (Operation::Flush(namespace), _) => {
            let flushed = flush_for_host(binding, namespace.as_ref()).await;
            flushed.into()
        }
        (Operation::WriteZeroes(blocks, space, durability), _) => {
            let durability = now_durable(binding, *durability);
            let result = write_zeroes(blocks, *space, durability).await;
            done(counters, result)
        }
        (Operation::WriteUncorrectable(blocks), _) => {
            let pass = blocks.namespace.gate.enter(blocks.at, blocks.count).await;
            let result = blocks
                .namespace
                .disk
                .write_uncorrectable(blocks.at, blocks.count)
                .await;
            drop(pass);
            done(counters, result)
        }
        (Operation::Verify(blocks), _) => range::verify(core, blocks, counters).await.into(),
        (Operation::DatasetManagement(namespace, ranges, deallocate), Some(data)) => {
            let ranges = (*ranges, &data);
            let mut done =
                range::dataset_management(namespace, ranges, *deallocate, counters).await;
            if done.is_ok() && now_durable(binding, Durability::Cached) == Durability::Durable {
                let flushed = namespace.disk.flush().await;
                done = flushed.map_err(|error| status_of(error, counters));
            }
            done.into()
        }
        (Operation::Copy(namespace, to, ranges, durability), Some(data)) => {
            range::copy(
                core,
                namespace,
                *to,
                (*ranges, &data),
                now_durable(binding, *durability),
                counters,
            )
            .await
        }
        (_, None) => Done::status(Status::INTERNAL_ERROR),
    }
}

async fn read<E: Environment>(
    core: &Core<E>,
    blocks: &Blocks<E>,
    mut data: Buffer,
) -> Result<Buffer, DiskError> {
    let disk = &blocks.namespace.disk;
    let mut result = disk.read(blocks.at, std::slice::from_ref(&data)).await;
    for _ in 1..READS_MAX {
        // A device that did not answer may still write the first one. An array reads from others by
        // now.
        if result == Err(DiskError::TimedOut)
            && let Some(other) = core.memory.payload.try_allocate(data.len())
        {
            data = other;
            result = disk.read(blocks.at, std::slice::from_ref(&data)).await;
        }
    }
    result.map(|()| data)
}

/// The cache may have been turned off since the command was checked.
fn now_durable<E: Environment>(binding: &Binding<E>, durability: Durability) -> Durability {
    #[cfg(corebay_fault)]
    if fault::is(fault::Fault::CacheOffIgnored) {
        return durability;
    }
    if binding.controller.write_cache() {
        durability
    } else {
        Durability::Durable
    }
}

async fn write<E: Environment>(
    blocks: &Blocks<E>,
    data: &Buffer,
    durability: Durability,
) -> Result<(), DiskError> {
    let _pass = blocks.namespace.gate.enter(blocks.at, blocks.count).await;
    blocks
        .namespace
        .disk
        .write(blocks.at, std::slice::from_ref(data), durability)
        .await
}

async fn write_zeroes<E: Environment>(
    blocks: &Blocks<E>,
    space: Space,
    durability: Durability,
) -> Result<(), DiskError> {
    let _pass = blocks.namespace.gate.enter(blocks.at, blocks.count).await;
    let disk = &blocks.namespace.disk;
    disk.write_zeroes(blocks.at, blocks.count, space, durability)
        .await
}

/// Flushes one namespace, or all that are attached, and says so where acknowledged writes may be lost.
pub async fn flush_for_host<E: Environment>(
    binding: &Binding<E>,
    namespace: Option<&Ns<E>>,
) -> Result<(), Status> {
    // Where it fails, the host tries again, and is told then.
    flush(binding, namespace).await?;
    let (subsystem, host) = (&binding.controller.subsystem, &binding.controller.host_nqn);
    let is_lost = |of: &Ns<E>| subsystem.tell_of_lost_writes(of.spec.nsid, host);
    let lost = match namespace {
        Some(namespace) => is_lost(namespace),
        None => {
            binding
                .table
                .all()
                .iter()
                .filter(|one| is_lost(one))
                .count()
                > 0
        }
    };
    match lost {
        // Tried again it would succeed, and nobody would know.
        true => Err(Status::WRITE_FAULT.with_dnr()),
        false => Ok(()),
    }
}

/// Flushes one namespace, or all that are attached.
pub async fn flush<E: Environment>(
    binding: &Binding<E>,
    namespace: Option<&Ns<E>>,
) -> Result<(), Status> {
    #[cfg(corebay_fault)]
    if fault::is(fault::Fault::FlushSkipped) {
        return Ok(());
    }
    let status = |error| status_of(error, &binding.counters);
    #[cfg(corebay_fault)]
    let other = |of: &Ns<E>| {
        let all = binding.table.all().into_iter();
        let other = all.into_iter().find(|one| one.spec.nsid != of.spec.nsid);
        other.filter(|_| fault::is(fault::Fault::WrongFlush))
    };
    #[cfg(corebay_fault)]
    let other = namespace.and_then(other);
    #[cfg(corebay_fault)]
    let namespace = other.as_ref().or(namespace);
    let targets = match namespace {
        Some(namespace) => return namespace.disk.flush().await.map_err(status),
        None => binding.table.all(),
    };
    let mut result = Ok(());
    for namespace in targets {
        // All are flushed, whichever fails.
        result = result.and(namespace.disk.flush().await.map_err(status));
    }
    result
}

fn done(counters: &IoCounters, result: Result<(), DiskError>) -> Done {
    result.map_err(|error| status_of(error, counters)).into()
}

fn failed(counters: &IoCounters, error: DiskError) -> Done {
    Done::status(status_of(error, counters))
}

/// The status of a disk's error. Where the medium is at fault, the health log counts it.
fn status_of(error: DiskError, counters: &IoCounters) -> Status {
    if matches!(error, DiskError::UnrecoveredRead | DiskError::WriteFault) {
        IoCounters::add(&counters.media_errors, 1);
    }
    from_disk(error)
}
