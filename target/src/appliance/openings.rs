//! Drives that are being opened, a thread for each: the kernel resets a device that it lends, and waits up to
//! a minute for one that does not answer, while the others have to go on.
//!
//! Invariants:
//! - Whoever asked is answered once, at the latest after [`OPEN_TIMEOUT`]. What is opened later than that is
//!   dropped, and with it given back.
//! - A thread that has ended is joined; the end waits for those that have not ([`Openings::are_over`]).

use std::{sync::mpsc, thread::JoinHandle, time::Duration};

use corebay_core::units::Time;

use super::run::spawn;

/// How long opening a drive may take: the kernel's own patience with a reset, and some.
const OPEN_TIMEOUT: Duration = Duration::from_secs(70);

/// Openings that are under way: `T` is what is opened, `A` who asked for it.
pub struct Openings<T, A>(Vec<Opening<T, A>>);

struct Opening<T, A> {
    thread: JoinHandle<()>,
    opened: mpsc::Receiver<Result<T, String>>,
    /// `None` once it was answered.
    asker: Option<A>,
    deadline: Time,
}

/// Who asked, and what came of it.
pub type Answer<T, A> = (A, Result<T, String>);

impl<T: Send + 'static, A> Openings<T, A> {
    /// None yet.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Opens a drive from now on.
    ///
    /// # Errors
    /// The answer, where there is no thread for it.
    pub fn begin(
        &mut self,
        address: &str,
        asker: A,
        now: Time,
        open: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<(), Answer<T, A>> {
        let (tell, opened) = mpsc::channel();
        let name = format!("corebay-open-{address}");
        let thread = spawn(name, move || drop(tell.send(open())));
        match thread {
            Ok(thread) => self.0.push(Opening {
                thread,
                opened,
                asker: Some(asker),
                deadline: now.plus(OPEN_TIMEOUT),
            }),
            Err(failure) => return Err((asker, Err(failure.to_string()))),
        }
        Ok(())
    }

    /// Those that have ended, or have taken too long, since this was asked last.
    pub fn take(&mut self, now: Time) -> Vec<Answer<T, A>> {
        let mut answers = Vec::new();
        let mut under_way = Vec::new();
        for mut opening in std::mem::take(&mut self.0) {
            let opened = match opening.opened.try_recv() {
                Err(mpsc::TryRecvError::Empty) => {
                    let is_late = now >= opening.deadline;
                    if let Some(asker) = opening.asker.take_if(|_| is_late) {
                        let seconds = OPEN_TIMEOUT.as_secs();
                        let why = format!("the kernel does not open it within {seconds} s");
                        answers.push((asker, Err(why)));
                    }
                    under_way.push(opening);
                    continue;
                }
                Ok(opened) => opened,
                Err(mpsc::TryRecvError::Disconnected) => Err("its thread has ended".to_owned()),
            };
            // It has said its last word.
            let _ = opening.thread.join();
            answers.extend(opening.asker.map(|asker| (asker, opened)));
        }
        self.0 = under_way;
        answers
    }

    /// True once none is under way.
    pub fn are_over(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits for an answer; the clock of the openings stands still meanwhile.
    fn next(
        openings: &mut Openings<u32, &'static str>,
        now: Time,
    ) -> Vec<Answer<u32, &'static str>> {
        let (_keep, never) = mpsc::channel::<()>();
        for _ in 0..10_000 {
            let answers = openings.take(now);
            if !answers.is_empty() {
                return answers;
            }
            let _ = never.recv_timeout(Duration::from_millis(1));
        }
        panic!("no answer")
    }

    #[test]
    fn a_dead_drive_keeps_no_other_waiting() {
        let mut openings = Openings::new();
        let (revive, dead) = mpsc::channel::<u32>();
        let dead = move || dead.recv().map_err(|_| "gone".to_owned());
        assert!(openings.begin("dead", "dead", Time(0), dead).is_ok());
        for (name, opened) in [("good", Ok(1)), ("refused", Err("no".to_owned()))] {
            let expected = opened.clone();
            assert!(openings.begin(name, name, Time(0), || opened).is_ok());
            assert_eq!(next(&mut openings, Time(0)), [(name, expected)]);
        }
        let late = Time(0).plus(OPEN_TIMEOUT);
        let [(asker, Err(why))] = &next(&mut openings, late)[..] else {
            panic!("the dead one is given up");
        };
        assert_eq!(*asker, "dead");
        assert!(why.contains("does not open"), "{why}");
        assert!(openings.take(late).is_empty(), "answered once");
        assert!(!openings.are_over(), "its thread is awaited");
        revive.send(7).unwrap();
        while !openings.are_over() {
            assert!(openings.take(late).is_empty(), "it comes too late");
            std::thread::yield_now();
        }
    }
}
