//! The world: who turns next, how time passes, and what goes wrong when.
//!
//! Invariants:
//! - One thread, one seed: the order of turns, the time each takes and every fault come from the
//!   seed's generators alone.
//! - Time passes with every turn. Where nobody has anything to do it leaps to the next event.
//! - Faults end; after the last one everything works again, and whoever is still not done by
//!   [`PATIENCE`] after that hangs.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use corebay_core::{reactor::Reactor, rng::Rng, units::Time};
use corebay_target::memory::Memory;

use crate::{
    client::{Client, Common},
    medium::{MediumFaults, SimMedium},
    net::Hub,
    node::{Node, Surroundings, memory},
    plan::{Mischief, Plan},
    trace::{Trace, event},
};

/// How long a world without faults may take to do what is left.
const PATIENCE: Duration = Duration::from_secs(200);

/// The most faults of one run.
const MISCHIEF_MAX: u64 = 25;

/// How long a drain of the target may take before it is ended anyhow.
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// Rounds of turns without work after which time leaps.
const IDLE_ROUNDS: u32 = 2;

/// A core that makes no turn until then.
struct Sleeper {
    core: usize,
    until: Time,
}

/// The target's life.
enum Life {
    Running(Node),
    Draining(Node, Time),
    /// Off, until then.
    Off(Time),
}

/// See the module.
pub struct World {
    common: Rc<Common>,
    media: Vec<SimMedium>,
    memories: Vec<Memory>,
    clients: Vec<Client>,
    life: Life,
    now: Time,
    rng: Rng,
    mischief_left: u64,
    next_mischief: Time,
    /// When a parted network heals, a full disk has space.
    heal_at: Time,
    sleepers: Vec<Sleeper>,
    idle_rounds: u32,
    order: Vec<usize>,
    cuts: u64,
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The hash of its trace.
    pub hash: u64,
    /// Events in its trace.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Commands sent.
    pub commands: u64,
    /// Changes of media.
    pub changes: u64,
    /// Power cuts.
    pub cuts: u64,
}

impl World {
    /// A world of this plan.
    #[must_use]
    pub fn new(plan: Plan, seed: u64, trace: &Trace) -> Self {
        let mut rng = Rng::from_seed(seed);
        let hub = Hub::new(plan.network, rng.next_u64(), trace);
        let target = SocketAddr::new(TARGET, 4420);
        let media: Vec<_> = plan
            .media
            .iter()
            .map(|options| SimMedium::new(*options, rng.next_u64()))
            .collect();
        for medium in &media {
            medium.set_faults(plan.medium_faults);
        }
        let common = Common::new(plan, trace, &hub, target);
        let clients = (0..common.plan.hosts.len())
            .map(|index| Client::start(&common, index, host_ip(index), rng.next_u64(), Time(0)))
            .collect();
        let mischief_left = match common.plan.mischief.is_empty() {
            true => 0,
            false => 1 + rng.below(MISCHIEF_MAX),
        };
        let target = common.plan.target;
        let mut world = Self {
            memories: (0..target.cores)
                .map(|_| memory(target.memory_bytes))
                .collect(),
            common,
            media,
            clients,
            life: Life::Off(Time(0)),
            now: Time(0),
            mischief_left,
            next_mischief: Time(0),
            heal_at: Time::FAR,
            sleepers: Vec::new(),
            idle_rounds: 0,
            order: Vec::new(),
            cuts: 0,
            rng,
        };
        world.plan_mischief();
        world
    }

    /// Cuts the power right after the first medium has been changed so often.
    pub fn cut_after(&mut self, changes: u64) {
        self.media[0].stop_after(changes);
    }

    /// Runs the world to its end.
    ///
    /// # Errors
    /// Says what went wrong.
    pub fn run(mut self) -> Result<Report, String> {
        self.start()?;
        self.work()?;
        self.calm_down();
        if self.common.plan.cut_at_end {
            self.cut_power()?;
        }
        self.until("the target starts", |world| {
            matches!(world.life, Life::Running(_))
        })?;
        self.clients[0].start_check();
        self.until("every block is checked", |world| world.clients[0].is_done())?;
        self.common.finishing.set(true);
        self.until("the hosts end", |world| {
            world.clients.iter().all(Client::has_ended)
        })?;
        self.until_without_leaks()?;
        if let Some(leak) = self.clients.iter().find_map(Client::leaks) {
            return Err(leak);
        }
        self.end_process()?;
        Ok(self.report())
    }

    fn report(&self) -> Report {
        let trace = &self.common.trace;
        Report {
            hash: trace.hash(),
            events: trace.events(),
            simulated: self.now.since(Time(0)),
            commands: self.common.commands(),
            changes: self.media.iter().map(SimMedium::changes).sum(),
            cuts: self.cuts,
        }
    }

    /// Lets the hosts work until they are done.
    fn work(&mut self) -> Result<(), String> {
        let mut deadline = self.now.plus(PATIENCE);
        while !self.clients.iter().all(Client::is_done) {
            self.round()?;
            if self.mischief_left > 0 {
                deadline = self.now.plus(PATIENCE);
                if self.now >= self.next_mischief {
                    self.do_mischief()?;
                }
            }
            if self.now > deadline {
                return Err(self.hang("the hosts work"));
            }
        }
        Ok(())
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = self.now.plus(PATIENCE);
        while !done(self) {
            self.round()?;
            if self.now > deadline {
                return Err(self.hang(what));
            }
        }
        Ok(())
    }

    fn until_without_leaks(&mut self) -> Result<(), String> {
        let deadline = self.now.plus(PATIENCE);
        loop {
            let Life::Running(node) = &self.life else {
                return Err("the target does not run at the end".into());
            };
            let Some(leak) = node.leaks() else {
                return Ok(());
            };
            if self.now > deadline {
                return Err(format!("the target, without any host: {leak}"));
            }
            self.round()?;
        }
    }

    fn hang(&self, what: &str) -> String {
        let mut under_way = Vec::new();
        for client in &self.clients {
            let index = client.shared.index;
            for (number, what) in client.shared.under_way.borrow().iter() {
                under_way.push(format!("host {index} command {number} {what}"));
            }
        }
        let patience = PATIENCE.as_secs();
        format!("{patience} s were not enough until {what}; under way: {under_way:?}")
    }

    /// Every core turns about once, in any order; then time leaps if nobody had anything to do.
    fn round(&mut self) -> Result<(), String> {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(0..self.core_count());
        for index in (1..order.len()).rev() {
            let other = usize::try_from(self.rng.below(index as u64 + 1)).unwrap_or(0);
            order.swap(index, other);
        }
        let mut work = 0;
        for &core in &order {
            work += self.turn(core);
        }
        self.order = order;
        if let Some(failure) = self.common.verdict.borrow_mut().take() {
            return Err(failure);
        }
        self.sleepers.retain(|sleeper| sleeper.until > self.now);
        self.live_on()?;
        if self.media.iter().any(SimMedium::has_stopped) {
            self.cut_power()?;
        }
        // What a core that sleeps has to take does not keep time from passing.
        if work > 0 || self.sleepers.is_empty() && !self.common.hub.is_quiet() {
            self.idle_rounds = 0;
        } else {
            self.idle_rounds += 1;
            if self.idle_rounds >= IDLE_ROUNDS {
                self.leap();
            }
        }
        Ok(())
    }

    fn turn(&mut self, core: usize) -> usize {
        let step = 1 + self.rng.below(self.common.plan.turn_nanos_max);
        self.now = Time(self.now.0 + step);
        self.common.trace.set_now(self.now);
        self.common.hub.advance(self.now);
        if let Some(node) = self.life.node() {
            for queue in node.queues().borrow().iter() {
                queue.advance(self.now);
            }
        }
        let sleeps = self.sleepers.iter().any(|sleeper| sleeper.core == core);
        if sleeps || self.media.iter().any(SimMedium::has_stopped) {
            return 0;
        }
        let Some(reactor) = self.reactor(core) else {
            return 0;
        };
        let work = reactor.poll_once(self.now);
        if work > 0 {
            self.common
                .trace
                .mark([event::TURN, core as u64, work as u64]);
        }
        work
    }

    /// The hosts' cores come first, then the target's.
    fn core_count(&self) -> usize {
        self.clients.len() + self.life.node().map_or(0, |node| node.cores.len())
    }

    fn reactor(&self, core: usize) -> Option<&Reactor> {
        match core.checked_sub(self.clients.len()) {
            None => Some(&self.clients[core].reactor),
            Some(core) => Some(&self.life.node()?.cores.get(core)?.reactor),
        }
    }

    /// Nobody has anything to do now: time passes until somebody has.
    fn leap(&mut self) {
        let mut next = self.common.hub.next_event().unwrap_or(Time::FAR);
        if self.mischief_left > 0 {
            next = next.min(self.next_mischief);
        }
        next = next.min(self.heal_at);
        for core in 0..self.core_count() {
            let asleep = self.sleepers.iter().find(|sleeper| sleeper.core == core);
            let deadline = match asleep {
                Some(sleeper) => Some(sleeper.until),
                None => self.reactor(core).and_then(Reactor::next_deadline),
            };
            next = next.min(deadline.unwrap_or(Time::FAR));
        }
        match &self.life {
            Life::Running(node) | Life::Draining(node, _) => {
                let queues = node.queues().borrow();
                let due = queues.iter().filter_map(|queue| queue.next_event()).min();
                next = next.min(due.unwrap_or(Time::FAR));
            }
            Life::Off(until) => next = next.min(*until),
        }
        if let Life::Draining(_, until) = &self.life {
            next = next.min(*until);
        }
        if next != Time::FAR {
            self.now = self.now.max(next);
        }
        self.idle_rounds = 0;
    }

    /// What happens to the target by the passing of time, and the end of faults that last.
    fn live_on(&mut self) -> Result<(), String> {
        if self.now >= self.heal_at {
            self.heal();
        }
        match &self.life {
            Life::Off(until) if self.now >= *until => self.start(),
            Life::Draining(node, until) if node.connections() == 0 || self.now >= *until => {
                self.note("the target has drained and ends");
                self.common.hub.end_process(TARGET);
                self.end_process()
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self) -> Result<(), String> {
        for medium in &self.media {
            medium.set_gone(false);
        }
        self.common.hub.restore_power(TARGET);
        let around = Surroundings {
            plan: &self.common.plan,
            hub: &self.common.hub,
            media: &self.media,
            memories: &self.memories,
            trace: &self.common.trace,
            address: self.common.target,
        };
        let node = Node::start(&around, self.now).map_err(|error| error.to_string())?;
        self.life = Life::Running(node);
        self.note("the target starts");
        Ok(())
    }

    /// The target's process is no more; it starts again in a while.
    fn end_process(&mut self) -> Result<(), String> {
        let off = Duration::from_micros(self.rng.below(100_000));
        let life = std::mem::replace(&mut self.life, Life::Off(self.now.plus(off)));
        let clients = self.clients.len();
        self.sleepers.retain(|sleeper| sleeper.core < clients);
        match life {
            Life::Running(node) | Life::Draining(node, _) => node.end(),
            Life::Off(_) => Ok(()),
        }
    }

    fn kill(&mut self) -> Result<(), String> {
        self.note("the target is killed");
        self.common.hub.end_process(TARGET);
        self.end_process()
    }

    fn cut_power(&mut self) -> Result<(), String> {
        self.note("the power fails");
        self.cuts += 1;
        self.common.power_failed.set(true);
        self.common.hub.cut_power(TARGET);
        self.end_process()?;
        for (medium, model) in self.media.iter().zip(&self.common.models) {
            medium.cut_power();
            model.borrow_mut().cut_power();
        }
        Ok(())
    }

    fn heal(&mut self) {
        self.note("the network is whole, the disks have space");
        self.heal_at = Time::FAR;
        self.common.hub.heal();
        for medium in &self.media {
            medium.set_full(false);
        }
    }

    /// No more faults.
    fn calm_down(&mut self) {
        self.mischief_left = 0;
        self.sleepers.clear();
        self.heal();
        for medium in &self.media {
            medium.set_faults(MediumFaults::default());
        }
        if self.media.iter().any(SimMedium::is_gone) {
            self.common.hub.end_process(TARGET);
            if let Err(leak) = self.end_process() {
                self.common.fail(leak);
            }
        }
    }

    fn plan_mischief(&mut self) {
        let every = u64::try_from(self.common.plan.mischief_every.as_nanos()).unwrap_or(0);
        self.next_mischief = Time(self.now.0 + self.rng.below(2 * every + 1));
    }

    fn do_mischief(&mut self) -> Result<(), String> {
        self.mischief_left -= 1;
        self.plan_mischief();
        let kinds = &self.common.plan.mischief;
        let kind = kinds[self.rng.below(kinds.len() as u64) as usize];
        self.note(&format!("{kind:?}"));
        match kind {
            Mischief::Reset | Mischief::HalfReset | Mischief::HalfClose => self.disturb(kind),
            Mischief::Partition => {
                let host = self.rng.below(self.clients.len() as u64) as usize;
                self.common.hub.part(host_ip(host));
                self.heal_within(1_500);
            }
            Mischief::SlowCore => {
                let core = self.rng.below(self.core_count() as u64) as usize;
                let most = self
                    .common
                    .plan
                    .mischief_every
                    .min(Duration::from_millis(10));
                let until = self.now.plus(most);
                self.sleepers.push(Sleeper { core, until });
            }
            Mischief::DiskFull => {
                self.any_medium().set_full(true);
                self.heal_within(100);
            }
            Mischief::DiskGone => self.any_medium().set_gone(true),
            Mischief::Kill if self.is_running() => self.kill()?,
            Mischief::PowerCut => self.cut_power()?,
            Mischief::Restart if self.is_running() => self.drain(),
            Mischief::Kill | Mischief::Restart => {}
        }
        Ok(())
    }

    fn disturb(&mut self, kind: Mischief) {
        let connections = self.common.hub.connections();
        if connections.is_empty() {
            return;
        }
        let chosen = connections[self.rng.below(connections.len() as u64) as usize];
        match kind {
            Mischief::HalfClose => {
                let side = self.rng.below(2) as usize;
                self.common.hub.half_close(chosen, side);
            }
            _ => self.common.hub.reset(chosen, kind == Mischief::HalfReset),
        }
    }

    fn any_medium(&mut self) -> SimMedium {
        self.media[self.rng.below(self.media.len() as u64) as usize].clone()
    }

    fn heal_within(&mut self, millis_max: u64) {
        let time = Duration::from_millis(1 + self.rng.below(millis_max));
        let at = self.now.plus(time);
        if self.heal_at == Time::FAR {
            self.heal_at = at;
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.life, Life::Running(_))
    }

    fn drain(&mut self) {
        let off = Life::Off(Time::FAR);
        if let Life::Running(node) = std::mem::replace(&mut self.life, off) {
            node.drain();
            self.life = Life::Draining(node, self.now.plus(DRAIN_MAX));
        }
    }

    fn note(&self, what: &str) {
        let words = [event::FAULT, what.len() as u64, 0];
        self.common.trace.note(words, || what.to_string());
    }
}

impl Life {
    fn node(&self) -> Option<&Node> {
        match self {
            Self::Running(node) | Self::Draining(node, _) => Some(node),
            Self::Off(_) => None,
        }
    }
}

/// The target's machine.
const TARGET: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// A host's machine.
fn host_ip(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(
        10,
        0,
        1,
        u8::try_from(index + 1).unwrap_or(0xff),
    ))
}
