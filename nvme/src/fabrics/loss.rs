//! The report that one of an association's connections has ended, for the one task that waits for
//! it.

use std::{
    cell::{Cell, RefCell},
    task::{Poll, Waker},
};

use super::error::Error;

/// Where the end of any connection of an association is reported.
#[derive(Debug, Default)]
pub(super) struct Loss {
    error: Cell<Option<Error>>,
    waker: RefCell<Option<Waker>>,
}

impl Loss {
    /// Reports the end; the first report counts.
    pub(super) fn report(&self, error: Error) {
        if self.error.get().is_none() {
            self.error.set(Some(error));
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Waits for a report. One task waits at a time.
    pub(super) async fn wait(&self) -> Error {
        std::future::poll_fn(|context| match self.error.get() {
            Some(error) => Poll::Ready(error),
            None => {
                *self.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}
