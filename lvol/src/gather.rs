//! Reads of blocks that lie in several places: their parts are on their way together.
//!
//! Invariants:
//! - A read takes nothing from the heap: the places for parts are made when the pool is opened on the core.
//!   Who finds none reads one part after the other.
//! - Parts end, or are dropped, with the read that they belong to. The look that found them is the read's.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    rc::Rc,
    task::{Context, Poll},
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, SEGMENTS_MAX},
    units::Lba,
};

/// Parts of one read that are on their way together.
const PARTS_MAX: usize = 8;

/// Parts of all reads of a core.
const PLACES: usize = 32;

/// Where a part's data go.
pub(crate) type Into = ArrayVec<Buffer, SEGMENTS_MAX>;

enum Order<'a, 'b> {
    Begin(Lba, &'a Into),
    Poll(&'a mut Context<'b>),
    Drop,
}

/// The place of a part: holds the disk's future, whatever its type is.
type Place = Box<dyn FnMut(Order<'_, '_>) -> Poll<Result<(), DiskError>>>;

fn place<D: Disk>(disk: Rc<D>) -> Place {
    let read = move |at, into: Into| {
        let disk = disk.clone();
        async move { disk.read(at, &into).await }
    };
    let mut part = Box::pin(None);
    Box::new(move |order| {
        match order {
            Order::Begin(at, into) => part.set(Some(read(at, into.clone()))),
            Order::Drop => part.set(None),
            Order::Poll(context) => {
                let Some(under_way) = part.as_mut().as_pin_mut() else {
                    return Poll::Ready(Ok(()));
                };
                let polled = under_way.poll(context);
                if polled.is_ready() {
                    part.set(None);
                }
                return polled;
            }
        }
        Poll::Pending
    })
}

/// One core's places.
pub(crate) struct Gather {
    free: RefCell<Vec<Place>>,
}

impl Gather {
    pub fn new<D: Disk>(disk: &Rc<D>) -> Self {
        Self {
            free: RefCell::new((0..PLACES).map(|_| place(disk.clone())).collect()),
        }
    }

    /// For one read.
    pub fn parts(&self) -> Parts<'_> {
        Parts {
            of: self,
            under_way: ArrayVec::new(),
        }
    }
}

/// The parts of a read that are under way.
pub(crate) struct Parts<'a> {
    of: &'a Gather,
    under_way: ArrayVec<Place, PARTS_MAX>,
}

impl Parts<'_> {
    /// Begins a part; false where there is no place for it.
    pub fn begin(&mut self, at: Lba, into: &Into) -> bool {
        if self.under_way.is_full() {
            return false;
        }
        let Some(mut place) = self.of.free.borrow_mut().pop() else {
            return false;
        };
        // It is polled where the others are.
        let _ = place(Order::Begin(at, into));
        self.under_way.push(place);
        true
    }

    /// Waits until all that have begun have ended; the first error counts.
    pub async fn end(&mut self) -> Result<(), DiskError> {
        let mut result = Ok(());
        poll_fn(|context| {
            let mut at = 0;
            while let Some(place) = self.under_way.get_mut(at) {
                match place(Order::Poll(context)) {
                    Poll::Pending => at += 1,
                    Poll::Ready(ended) => {
                        result = result.and(ended);
                        let place = self.under_way.swap_remove(at);
                        self.of.free.borrow_mut().push(place);
                    }
                }
            }
            match self.under_way.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        result
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        for mut place in self.under_way.drain(..) {
            let _ = place(Order::Drop);
            self.of.free.borrow_mut().push(place);
        }
    }
}
