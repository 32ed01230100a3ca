//! One operation of a disk, and the commands that it is cut into.
//!
//! An operation is issued piece by piece: a piece is what one command of this controller can carry.
//! A piece is described by its place in the operation alone, so it can be issued again after a reset.

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::DevicePin,
    disk::{DiskError, SEGMENTS_MAX},
    sync::Token,
};
use zerocopy::{IntoBytes, little_endian::U32};

use super::{
    device::DmaWindows,
    pointer::{Extents, List, PAGE_BYTES, choose, describe, extents as list_extents},
    shared::Zeroes,
};
use crate::spec::{
    command::{DsmRange, SubmissionEntry, nvm},
    status::{SCT_MEDIA, Status},
};

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write { durable: bool },
    Compare,
    Verify,
    Flush,
    WriteZeroes { durable: bool, deac: bool },
    WriteZeroPages { durable: bool },
    Deallocate,
    WriteUncorrectable,
}

impl Kind {
    /// True where what it did may be lost with the power until a flush.
    pub(super) fn stays_in_cache(self) -> bool {
        match self {
            Self::Write { durable }
            | Self::WriteZeroes { durable, .. }
            | Self::WriteZeroPages { durable } => !durable,
            Self::Deallocate | Self::WriteUncorrectable => true,
            Self::Read | Self::Compare | Self::Verify | Self::Flush => false,
        }
    }
}

/// What is asked of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) nsid: u32,
    /// log2 of the bytes of a block.
    pub(super) shift: u32,
    /// The most blocks of one command.
    pub(super) limit: u32,
    pub(super) at: u64,
    /// What a flush has is 1.
    pub(super) blocks: u64,
    /// Blocks have metadata, in a buffer of its own.
    pub(super) metadata: bool,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Status(Status),
    TimedOut,
    Gone,
    /// A buffer lies where the device cannot reach it.
    Unreachable,
}

/// The error number of a bad address.
const FAULT: i32 = 14;

impl Failure {
    /// What it means to the disk's user.
    pub(super) fn to_error(self) -> DiskError {
        let status = match self {
            Self::Status(status) => status,
            Self::TimedOut => return DiskError::TimedOut,
            Self::Gone => return DiskError::Gone,
            Self::Unreachable => return DiskError::Internal(FAULT),
        };
        let is = |other| status.same_as(other);
        if is(Status::LBA_OUT_OF_RANGE) {
            DiskError::OutOfRange
        } else if is(Status::CAPACITY_EXCEEDED) {
            DiskError::NoSpace
        } else if is(Status::WRITE_FAULT)
            || is(Status::NAMESPACE_WRITE_PROTECTED)
            || is(Status::WRITE_TO_READ_ONLY_RANGE)
        {
            DiskError::WriteFault
        } else if is(Status::INVALID_OPCODE) {
            DiskError::Unsupported
        } else if is(Status::ABORT_REQUESTED) {
            DiskError::TimedOut
        } else if is(Status::INVALID_NAMESPACE_OR_FORMAT) {
            DiskError::Gone
        } else if status.sct() == SCT_MEDIA && !is(Status::COMPARE_FAILURE) {
            DiskError::UnrecoveredRead
        } else {
            DiskError::Internal(0)
        }
    }

    /// The controller knows no such namespace.
    pub(super) fn is_missing(self) -> bool {
        let missing = Status::INVALID_NAMESPACE_OR_FORMAT;
        matches!(self, Self::Status(status) if status.same_as(missing))
    }

    /// The same command may succeed a little later.
    pub(super) fn is_transient(self) -> bool {
        let Self::Status(status) = self else {
            return false;
        };
        let transient = [
            Status::NAMESPACE_NOT_READY,
            Status::COMMAND_INTERRUPTED,
            Status::TRANSIENT_TRANSPORT_ERROR,
        ];
        !status.dnr() && transient.iter().any(|other| status.same_as(*other))
    }
}

/// An operation from its begin to its end.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) token: Token,
    pub(super) request: Request,
    /// Blocks that commands were issued for.
    pub(super) issued: u64,
    /// Commands in flight.
    pub(super) outstanding: u32,
    pub(super) failure: Option<Failure>,
    pub(super) active: bool,
    pub(super) pins: ArrayVec<DevicePin, SEGMENTS_MAX>,
}

impl Operation {
    pub(super) fn unused() -> Self {
        Self {
            token: Token::from_bits(0),
            request: Request {
                kind: Kind::Flush,
                nsid: 0,
                shift: 9,
                limit: 1,
                at: 0,
                blocks: 0,
                metadata: false,
            },
            issued: 0,
            outstanding: 0,
            failure: None,
            active: false,
            pins: ArrayVec::new(),
        }
    }

    pub(super) fn begin(&mut self, token: Token, request: Request) {
        self.token = token;
        self.request = request;
        self.issued = 0;
        self.outstanding = 0;
        self.failure = None;
        self.active = true;
    }

    /// True where commands are left to be issued.
    pub(super) fn has_more(&self) -> bool {
        self.active && self.failure.is_none() && self.issued < self.request.blocks
    }

    /// True once nothing of it is in flight, and nothing is left to be issued.
    pub(super) fn is_over(&self) -> bool {
        self.active && self.outstanding == 0 && !self.has_more()
    }

    /// The first failure counts.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// The command that carries at most `most` blocks from the operation's block `offset` on, and how
    /// many it carries.
    pub(super) fn command(
        &self,
        offset: u64,
        most: u64,
        windows: &DmaWindows,
        sgl: bool,
        list: List<'_>,
        zeroes: &Zeroes,
    ) -> Result<(SubmissionEntry, u32), Failure> {
        let Request {
            kind, nsid, shift, ..
        } = self.request;
        let mut blocks = most.min(u64::from(self.request.limit)) as u32;
        let mut entry = SubmissionEntry::new(opcode(kind), nsid);
        match kind {
            Kind::Flush => return Ok((entry, 1)),
            Kind::Read | Kind::Write { .. } | Kind::Compare => {
                let (from, bytes) = ((offset as usize) << shift, (blocks as usize) << shift);
                let mut extents = Extents::new();
                list_extents(&self.pins, windows, from, bytes, &mut extents)
                    .ok_or(Failure::Unreachable)?;
                let form = choose(&extents, sgl);
                blocks = (form.bytes() >> shift) as u32;
                if blocks == 0 {
                    return Err(Failure::Unreachable);
                }
                describe(&mut entry, &extents, form, list);
            }
            Kind::WriteZeroPages { .. } => {
                let pages = ((blocks as usize) << shift).div_ceil(PAGE_BYTES);
                let second = match pages {
                    1 => 0,
                    2 => zeroes.page,
                    _ => zeroes.list,
                };
                entry.set_prp(zeroes.page, second);
            }
            Kind::Deallocate => {
                let range = DsmRange::new(self.request.at + offset, blocks);
                list.memory.write(list.at, range.as_bytes());
                entry.set_prp(list.address, 0);
                entry.cdw11 = U32::new(nvm::AD);
                return Ok((entry, blocks));
            }
            Kind::Verify | Kind::WriteZeroes { .. } | Kind::WriteUncorrectable => {}
        }
        if self.request.metadata {
            entry.mptr = match kind {
                Kind::Read => zeroes.dropped,
                Kind::Write { .. } | Kind::WriteZeroPages { .. } | Kind::Compare => zeroes.metadata,
                // What has no data has no metadata either.
                _ => 0,
            }
            .into();
        }
        entry.set_cdw10_11(self.request.at + offset);
        entry.cdw12 = U32::new((blocks - 1) | flags(kind));
        Ok((entry, blocks))
    }
}

fn opcode(kind: Kind) -> u8 {
    match kind {
        Kind::Read => nvm::READ,
        Kind::Write { .. } | Kind::WriteZeroPages { .. } => nvm::WRITE,
        Kind::Compare => nvm::COMPARE,
        Kind::Verify => nvm::VERIFY,
        Kind::Flush => nvm::FLUSH,
        Kind::WriteZeroes { .. } => nvm::WRITE_ZEROES,
        Kind::Deallocate => nvm::DATASET_MANAGEMENT,
        Kind::WriteUncorrectable => nvm::WRITE_UNCORRECTABLE,
    }
}

fn flags(kind: Kind) -> u32 {
    match kind {
        Kind::Write { durable } | Kind::WriteZeroPages { durable } if durable => nvm::FUA,
        Kind::WriteZeroes { durable, deac } => {
            (if durable { nvm::FUA } else { 0 }) | (if deac { nvm::DEAC } else { 0 })
        }
        _ => 0,
    }
}
