//! The ends of other cores' slow writes, at the home core.
//!
//! Invariants:
//! - What is waited for here is the journal alone. An end takes no task slot, and none of the places
//!   that beginnings are asked by: those may all wait for the space that an end sets free.
//! - Ends become records in the order they came, and are answered in that order. Where the journal has no
//!   room they wait in its line, among the home core's own writes.

use std::{cell::RefCell, collections::VecDeque};

use corebay_core::{disk::Disk, units::CoreId};

use crate::{
    across::{Answer, Counted, Reply},
    error::PoolError,
    journal::Ticket,
    pool::Shared,
    slow::SlowWrite,
};

/// A write whose data are where they belong.
struct End<D: Disk> {
    from: CoreId,
    token: u64,
    write: SlowWrite<D>,
    _writing: Counted,
    /// Its place in the journal's line, where it has to wait there.
    number: Option<u64>,
}

/// Writes that end.
pub(crate) struct Ends<D: Disk> {
    /// There was no room for their records yet.
    coming: RefCell<VecDeque<End<D>>>,
    /// Their records wait for a batch.
    recorded: RefCell<VecDeque<(Ticket, End<D>)>>,
}

impl<D: Disk> Default for Ends<D> {
    fn default() -> Self {
        Self {
            coming: RefCell::default(),
            recorded: RefCell::default(),
        }
    }
}

impl<D: Disk> Ends<D> {
    /// Nobody will be answered any more.
    pub fn give_up(&self) {
        drop(self.coming.take());
        drop(self.recorded.take());
    }
}

impl<D: Disk> Shared<D> {
    /// Another core says that the data of a write are where they belong, or could not be written.
    pub fn end_of(
        &self,
        (from, token): (CoreId, u64),
        write: SlowWrite<D>,
        is_written: bool,
        writing: Counted,
    ) {
        let end = End {
            from,
            token,
            write,
            _writing: writing,
            number: None,
        };
        if !is_written {
            return self.answer_end(end, Ok(Reply::Done));
        }
        self.publish_own(&end.write);
        self.desk.ends.coming.borrow_mut().push_back(end);
    }

    /// Does for ends what can be done now; how many were answered.
    pub fn serve_ends(&self) -> usize {
        self.answer_recorded() + self.record_coming()
    }

    fn answer_recorded(&self) -> usize {
        let mut answered = 0;
        loop {
            let mut recorded = self.desk.ends.recorded.borrow_mut();
            let Some(result) = recorded.front().and_then(|(at, _)| self.outcome(*at)) else {
                return answered;
            };
            let first = recorded.pop_front();
            drop(recorded);
            if let Some((_, end)) = first {
                self.answer_end(end, result.clone().map(|()| Reply::Done));
            }
            answered += 1;
        }
    }

    fn record_coming(&self) -> usize {
        let mut answered = 0;
        loop {
            let ends = &self.desk.ends;
            let next = ends.coming.borrow_mut().pop_front();
            let Some(mut end) = next else { return answered };
            if end.write.records().next().is_none() {
                answered += 1;
                self.leave_line(&mut end);
                self.answer_end(end, Ok(Reply::Done));
                continue;
            }
            let appended = self.try_append_all(|| end.write.records(), end.number);
            let Some(appended) = appended else {
                ends.coming.borrow_mut().push_front(end);
                self.stand_in_line();
                return answered;
            };
            self.leave_line(&mut end);
            match appended {
                Ok(ticket) => ends.recorded.borrow_mut().push_back((ticket, end)),
                Err(error) => {
                    answered += 1;
                    self.answer_end(end, Err(error));
                }
            }
        }
    }

    fn leave_line(&self, end: &mut End<D>) {
        if let Some(number) = end.number.take() {
            self.journal.leave_line(number);
        }
    }

    /// All ends that wait have their places in the journal's line.
    fn stand_in_line(&self) {
        let mut coming = self.desk.ends.coming.borrow_mut();
        // Those that have one are the first.
        let last = coming.iter().rposition(|end| end.number.is_some());
        for end in coming.range_mut(last.map_or(0, |last| last + 1)..) {
            end.number = Some(self.journal.line.join());
        }
    }

    fn answer_end(&self, end: End<D>, answer: Answer) {
        end.write.end();
        self.answer_core(end.from, end.token, answer);
    }

    /// What has become of a record, once that is known.
    fn outcome(&self, ticket: Ticket) -> Option<Result<(), PoolError>> {
        match self.has_taken_effect(ticket) {
            true => Some(Ok(())),
            false => self.stopped().map(Err),
        }
    }
}
