//! One operation on a file, from before the kernel learns of it until its end: what it keeps, and how
//! far it has come.
//!
//! Invariant: while one of its calls is in the kernel nothing here is touched, as the call's list of
//! memory lies here.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
    sync::Arc,
};

use arrayvec::ArrayVec;

use super::{
    call::{Action, Call, Iovec, errno},
    claims::Claim,
    engine::Target,
};
use crate::{
    buffer::{Buffer, DevicePin, Direction},
    disk::SEGMENTS_MAX,
    units::BlockSize,
};

/// What else an operation keeps, and what is to happen at its end, also when nobody waits for it any
/// more. For the control path.
pub(super) struct Extra {
    /// Another file than the medium's own.
    pub(super) file: Arc<OwnedFd>,
    /// Bytes to write that do not lie in a buffer.
    pub(super) bytes: Box<[u8]>,
    /// Told the operation's result.
    pub(super) at_end: Box<dyn FnOnce(i32)>,
}

/// An operation in flight.
pub(super) struct Operation {
    pub(super) action: Action,
    pub(super) target: Option<Rc<Target>>,
    /// In bytes, as are `len` and `done`.
    offset: u64,
    len: u64,
    done: u64,
    pub(super) claim: Claim,
    iovecs: [Iovec; SEGMENTS_MAX],
    /// The iovecs that are not yet done with.
    next_iovec: usize,
    iovec_count: usize,
    pins: ArrayVec<DevicePin, SEGMENTS_MAX>,
    pub(super) extra: Option<Extra>,
}

impl Operation {
    pub(super) fn unused() -> Box<Self> {
        Box::new(Self {
            action: Action::Sync,
            target: None,
            offset: 0,
            len: 0,
            done: 0,
            claim: Claim::default(),
            iovecs: [Iovec::EMPTY; SEGMENTS_MAX],
            next_iovec: 0,
            iovec_count: 0,
            pins: ArrayVec::new(),
            extra: None,
        })
    }

    pub(super) fn begin(&mut self, target: &Rc<Target>, action: Action, offset: u64, len: u64) {
        self.action = action;
        self.target = Some(target.clone());
        self.offset = offset;
        self.len = len;
        self.done = 0;
        self.claim = Claim::default();
        self.next_iovec = 0;
        self.iovec_count = 0;
    }

    /// Adds a buffer, which the operation holds from now on.
    pub(super) fn add_buffer(&mut self, buffer: &Buffer) {
        let pin = buffer.pin(match self.action {
            Action::Read => Direction::FromDevice,
            _ => Direction::ToDevice,
        });
        debug_assert!(
            (pin.address() as usize).is_multiple_of(BlockSize::B512.bytes()),
            "direct I/O needs aligned memory"
        );
        self.add_memory(pin.address(), pin.len());
        self.pins.push(pin);
    }

    /// Adds `len` zeroes, at most a transfer's.
    pub(super) fn add_zeroes(&mut self, len: u64) {
        let mut left = usize::try_from(len).expect("at most a transfer");
        while left > 0 {
            let (base, most) = super::zero_memory();
            let piece = left.min(most);
            // Not joined: every piece is the same memory.
            self.iovecs[self.iovec_count] = Iovec { base, len: piece };
            self.iovec_count += 1;
            left -= piece;
        }
    }

    /// Lets go of what it kept, and tells whoever wants to know how it ended.
    pub(super) fn end(&mut self, result: i32) {
        if let Some(target) = self.target.take() {
            target.medium.release_claim(&mut self.claim);
        }
        self.pins.clear();
        if let Some(extra) = self.extra.take() {
            (extra.at_end)(result);
        }
    }

    /// Adds memory, joined to the last piece where it follows right after it.
    pub(super) fn add_memory(&mut self, base: *mut u8, len: usize) {
        if let Some(last) = self.iovecs[..self.iovec_count].last_mut()
            && last.base.wrapping_add(last.len) == base
        {
            last.len += len;
            return;
        }
        self.iovecs[self.iovec_count] = Iovec { base, len };
        self.iovec_count += 1;
    }

    /// A flush of the medium itself.
    pub(super) fn is_flush(&self) -> bool {
        self.action == Action::Sync && self.extra.is_none()
    }

    pub(super) fn call(&self) -> Call {
        let target = self.target.as_ref().expect("an operation has a file");
        let (fd, registered) = match &self.extra {
            Some(extra) => (extra.file.as_raw_fd(), None),
            None => (target.medium.fd().as_raw_fd(), target.registered),
        };
        let iovecs = &self.iovecs[self.next_iovec..self.iovec_count];
        Call {
            action: self.action,
            fd,
            registered,
            offset: self.offset + self.done,
            len: self.len - self.done,
            iovecs: iovecs.as_ptr(),
            iovec_count: u32::try_from(iovecs.len()).expect("at most SEGMENTS_MAX"),
        }
    }

    /// Takes a call's result; `None` where the operation goes on with another call.
    pub(super) fn advance(&mut self, result: i32) -> Option<i32> {
        if result == errno::INTERRUPTED || result == errno::AGAIN {
            return None;
        }
        let Ok(bytes) = u64::try_from(result) else {
            return Some(result);
        };
        if !matches!(self.action, Action::Read | Action::Write { .. }) {
            return Some(0);
        }
        if bytes == 0 {
            // The file ends here, though it did not when it was opened.
            return Some(errno::IO);
        }
        self.done += bytes;
        if self.done >= self.len {
            return Some(0);
        }
        let mut left = bytes;
        while left > 0 {
            let iovec = &mut self.iovecs[self.next_iovec];
            let step = left.min(iovec.len as u64);
            let in_memory = usize::try_from(step).expect("at most the piece's length");
            iovec.base = iovec.base.wrapping_add(in_memory);
            iovec.len -= in_memory;
            left -= step;
            if iovec.len == 0 {
                self.next_iovec += 1;
            }
        }
        None
    }
}
