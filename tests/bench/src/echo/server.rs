//! Owns the serving thread: it is the target or the bare echo, one at a time, on the same cpu.
//!
//! Invariants:
//! - While one serves, the other does not run at all, and nothing else runs in the thread.
//! - Both check the same two flags in every turn and nothing more.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{bare, target::Target};
use crate::{
    instructions::Counter,
    load::Load,
    pin::{pin, waited},
};

/// What the thread is to be.
#[derive(Clone, Copy)]
pub enum Role {
    /// The target.
    Target,
    /// The bare echo, for one connection; it gathers replies, or sends each by itself.
    Echo(Load, bool),
}

/// What the thread noticed while it was measured.
#[derive(Clone, Copy, Default)]
pub struct Report {
    /// The part of the time in which it found nothing to do.
    pub idle: f64,
    /// The part of the time in which other threads had its cpu.
    pub waited: f64,
    /// Calls that sent.
    pub sends: u64,
    /// Instructions in user space, where they can be counted.
    pub instructions: Option<u64>,
}

#[derive(Default)]
struct Flags {
    going: AtomicBool,
    measuring: AtomicBool,
}

/// What is noticed of the turns while it is measured.
pub struct Meter {
    flags: Arc<Flags>,
    counter: Option<Counter>,
    measured_since: Option<Instant>,
    measured: Duration,
    idle_turns: u32,
    idle: Duration,
    waited: Duration,
    /// Calls that sent, ever.
    pub sends: u64,
    sends_at: u64,
    instructions_at: Option<u64>,
    instructions: Option<u64>,
}

impl Meter {
    fn new(flags: Arc<Flags>) -> Self {
        Self {
            flags,
            counter: Counter::new(),
            measured_since: None,
            measured: Duration::ZERO,
            idle_turns: 0,
            idle: Duration::ZERO,
            waited: Duration::ZERO,
            sends: 0,
            sends_at: 0,
            instructions_at: None,
            instructions: None,
        }
    }

    /// To be asked in every turn: false once the thread is to stop.
    pub fn is_going(&mut self) -> bool {
        if self.flags.measuring.load(Ordering::Relaxed) != self.measured_since.is_some() {
            self.turn_over();
        }
        self.flags.going.load(Ordering::Relaxed)
    }

    #[cold]
    fn turn_over(&mut self) {
        let count = self.counter.as_mut().and_then(Counter::read);
        match self.measured_since.take() {
            None => {
                self.idle_turns = 0;
                self.idle = Duration::ZERO;
                self.instructions_at = count;
                self.sends_at = self.sends;
                self.waited = waited();
                self.measured_since = Some(Instant::now());
            }
            Some(since) => {
                self.measured = since.elapsed();
                self.waited = waited() - self.waited;
                self.sends_at = self.sends - self.sends_at;
                let before = self.instructions_at;
                self.instructions = count.zip(before).map(|(now, before)| now - before);
            }
        }
    }

    /// A turn in which nothing was to be done.
    pub fn idle_turn(&mut self) {
        if self.measured_since.is_some() {
            self.idle_turns += 1;
        }
    }

    /// Time in which nothing was to be done.
    fn idle_for(&mut self, time: Duration) {
        if self.measured_since.is_some() {
            self.idle += time;
        }
    }

    /// What each idle turn takes, where that was not measured at once.
    pub fn idle_turn_costs(&mut self, cost: Duration) {
        self.idle = cost * self.idle_turns;
    }

    fn report(&mut self) -> Report {
        let report = Report {
            idle: (self.idle.as_secs_f64() / self.measured.as_secs_f64()).min(1.0),
            waited: self.waited.as_secs_f64() / self.measured.as_secs_f64(),
            sends: self.sends_at,
            instructions: self.instructions,
        };
        self.measured_since = None;
        self.instructions = None;
        report
    }
}

/// The thread, as the host sees it.
pub struct Server {
    /// Where the target listens.
    pub target: SocketAddr,
    /// Where the echo listens.
    pub echo: SocketAddr,
    flags: Arc<Flags>,
    roles: mpsc::Sender<Role>,
    reports: mpsc::Receiver<Result<Report>>,
    _thread: JoinHandle<()>,
}

impl Server {
    /// Starts the thread on this cpu.
    pub fn start(cpu: usize) -> Result<Self> {
        let flags = Arc::new(Flags::default());
        let (roles, wanted) = mpsc::channel();
        let (report, reports) = mpsc::channel();
        let (address, addresses) = mpsc::channel();
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let echo = listener.local_addr()?;
        let meter = Meter::new(flags.clone());
        let thread = std::thread::spawn(move || {
            pin(cpu);
            match Target::start() {
                Ok(target) => {
                    if address.send(Ok(target.address)).is_ok() {
                        serve(&target, &listener, meter, &wanted, &report);
                    }
                }
                Err(error) => drop(address.send(Err(error))),
            }
        });
        let target = addresses.recv().context("the serving thread ended")??;
        Ok(Self {
            target,
            echo,
            flags,
            roles,
            reports,
            _thread: thread,
        })
    }

    /// Lets the thread be this from now on.
    pub fn begin(&self, role: Role) -> Result<()> {
        self.flags.going.store(true, Ordering::Relaxed);
        self.roles
            .send(role)
            .map_err(|_| anyhow!("the serving thread ended"))
    }

    /// Lets the thread measure, or no more.
    pub fn measure(&self, on: bool) {
        self.flags.measuring.store(on, Ordering::Relaxed);
    }

    /// Lets the thread rest again.
    pub fn end(&self) -> Result<Report> {
        self.flags.going.store(false, Ordering::Relaxed);
        self.reports.recv().context("the serving thread ended")?
    }
}

fn serve(
    target: &Target,
    listener: &TcpListener,
    mut meter: Meter,
    wanted: &mpsc::Receiver<Role>,
    reports: &mpsc::Sender<Result<Report>>,
) {
    // The thread that is measured is the one whose instructions count.
    meter.counter = Counter::new();
    while let Ok(role) = wanted.recv() {
        name(role);
        let served = match role {
            Role::Target => {
                turn(target, &mut meter);
                Ok(())
            }
            Role::Echo(load, gather) => listener
                .accept()
                .and_then(|(stream, _)| bare::serve(&stream, &load, gather, &mut meter)),
        };
        let report = served.map(|()| meter.report()).context("the echo");
        if reports.send(report).is_err() {
            return;
        }
    }
}

/// Names the thread after its role, so that a profiler can tell them apart.
fn name(role: Role) {
    let name = match role {
        Role::Target => c"target",
        Role::Echo(_, true) => c"echo",
        Role::Echo(_, false) => c"single-echo",
    };
    // Only a profiler would miss it.
    let _ = rustix::thread::set_name(name);
}

/// The appliance's loop, as it is while there is load: see `corebay_core::reactor::run`.
fn turn(target: &Target, meter: &mut Meter) {
    let mut now = target.clock.now();
    while meter.is_going() {
        meter.sends = target.tcp.counters.sends.get();
        let worked = target.reactor.poll_once(now) > 0;
        let before = std::mem::replace(&mut now, target.clock.now());
        if !worked {
            meter.idle_for(now.since(before));
            std::hint::spin_loop();
        }
    }
}
