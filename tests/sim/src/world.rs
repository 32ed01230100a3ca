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

use crate::{
    client::{Client, Common},
    machine::Machine,
    net::Hub,
    plan::{Mischief, Plan},
    trace::{Trace, event},
};

/// How long a world without faults may take to do what is left.
const PATIENCE: Duration = Duration::from_secs(200);

/// The most faults of one run.
const MISCHIEF_MAX: u64 = 25;

/// Rounds of turns without work after which time leaps.
const IDLE_ROUNDS: u32 = 2;

/// Rounds of turns after which time leaps where all their work came to nothing: somebody waits by
/// looking again and again.
const SPIN_ROUNDS: u32 = 4;

/// A core that makes no turn until then.
struct Sleeper {
    core: CoreName,
    until: Time,
}

/// A core of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CoreName {
    Host(usize),
    Node(usize, usize),
}

/// A host's machine.
struct HostMachine {
    ip: IpAddr,
    /// None while it is off.
    client: Option<Client>,
    back_at: Time,
}

/// See the module.
pub struct World {
    common: Rc<Common>,
    machines: Vec<Machine>,
    hosts: Vec<HostMachine>,
    now: Time,
    rng: Rng,
    mischief_left: u64,
    next_mischief: Time,
    /// When a parted network heals, a full disk has space.
    heal_at: Time,
    sleepers: Vec<Sleeper>,
    idle_rounds: u32,
    /// Rounds since something happened but turns, and what had happened by then.
    spinning: (u32, u64),
    order: Vec<CoreName>,
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
    /// Power cuts of appliances.
    pub cuts: u64,
}

impl World {
    /// A world of this plan.
    ///
    /// # Errors
    /// Says what could not be made before its beginning.
    pub fn new(plan: Plan, seed: u64, trace: &Trace) -> Result<Self, String> {
        let mut rng = Rng::from_seed(seed);
        let hub = Hub::new(plan.network, rng.next_u64(), trace);
        let addresses: Vec<_> = (1..)
            .take(plan.nodes.len())
            .map(|last| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), 4420))
            .collect();
        let machine = |(index, address): (usize, &SocketAddr)| {
            let rng = Rng::from_seed(rng.next_u64());
            let node = &plan.nodes[index];
            let faults = plan.medium_faults;
            Machine::new((index, *address), node, faults, rng, (&hub, trace))
        };
        let machines = addresses.iter().enumerate().map(machine);
        let machines = machines.collect::<Result<Vec<_>, _>>()?;
        let mischief_left = match plan.mischief.is_empty() {
            true => 0,
            false => 1 + rng.below(MISCHIEF_MAX),
        };
        let common = Common::new(plan, trace, &hub, addresses);
        let hosts = (0..common.plan.hosts.len()).map(|index| HostMachine {
            ip: host_ip(index),
            client: None,
            back_at: Time::FAR,
        });
        let mut world = Self {
            hosts: hosts.collect(),
            machines,
            now: Time(0),
            mischief_left,
            next_mischief: Time(0),
            heal_at: Time::FAR,
            sleepers: Vec::new(),
            idle_rounds: 0,
            spinning: (0, 0),
            order: Vec::new(),
            rng,
            common,
        };
        let common = world.common.clone();
        for machine in &mut world.machines {
            machine.join(&common);
        }
        world.plan_mischief();
        Ok(world)
    }

    /// Cuts the power right after the media have been changed so often.
    pub fn cut_after(&mut self, changes: u64) {
        self.machines[0].supply.stop_after(changes);
    }

    /// Changes of media so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.machines
            .iter()
            .map(|machine| machine.supply.changes())
            .sum()
    }

    /// Runs the world to its end.
    ///
    /// # Errors
    /// Says what went wrong.
    pub fn run(mut self) -> Result<Report, String> {
        for machine in &mut self.machines {
            machine.start(self.now)?;
        }
        if self.common.is_calm() {
            let all_run = |world: &Self| world.machines.iter().all(|each| each.running().is_some());
            self.until("the appliances run", all_run)?;
        }
        for index in 0..self.hosts.len() {
            self.start_host(index, false);
        }
        self.work()?;
        self.calm_down()?;
        // A reset that lost a command before fails only now, and its drive is given up.
        self.until("the drives are reset", |world| {
            !world.machines.iter().any(Machine::resets_drive)
        })?;
        self.calm_down()?;
        if self.common.plan.cut_at_end {
            for index in 0..self.machines.len() {
                self.cut_power(index)?;
            }
        }
        self.until("the appliances are whole", |world| {
            world.machines.iter().all(Machine::is_whole) && world.hosts_are_on()
        })?;
        for host in self.clients() {
            host.start_check();
        }
        self.until("every block is checked", |world| {
            world.clients().all(Client::is_done)
        })?;
        self.until("the hosts know of every change", |world| {
            !world.clients().any(Client::has_unread_notices)
        })?;
        self.common.finishing.set(true);
        self.until("the hosts end", |world| {
            world.clients().all(Client::has_ended)
        })?;
        self.until("the pools are checked", |world| {
            // A script may cut the power amid it.
            world.machines.iter().for_each(Machine::check_pools);
            world.machines.iter().all(Machine::has_checked_pools)
        })?;
        // An operator's last order may take longer than the hosts.
        self.until("every operation ends", |world| {
            world.common.commands_left().is_none()
        })?;
        self.until_without_leaks()?;
        if let Some(leak) = self.clients().find_map(Client::leaks) {
            return Err(leak);
        }
        for machine in &mut self.machines {
            machine.kill(self.now)?;
        }
        Ok(self.report())
    }

    fn report(&self) -> Report {
        let trace = &self.common.trace;
        Report {
            hash: trace.hash(),
            events: trace.events(),
            simulated: self.now.since(Time(0)),
            commands: self.common.commands(),
            changes: self.changes(),
            cuts: self.machines.iter().map(|machine| machine.cuts).sum(),
        }
    }

    fn clients(&self) -> impl Iterator<Item = &Client> {
        self.hosts.iter().filter_map(|host| host.client.as_ref())
    }

    fn hosts_are_on(&self) -> bool {
        self.hosts.iter().all(|host| host.client.is_some())
    }

    /// Lets the hosts work until they are done.
    fn work(&mut self) -> Result<(), String> {
        let mut deadline = self.now.plus(PATIENCE);
        while !(self.hosts_are_on() && self.clients().all(Client::is_done)) {
            self.round()?;
            if self.mischief_left > 0 {
                deadline = self.now.plus(PATIENCE);
                if self.now >= self.next_mischief {
                    self.do_mischief()?;
                }
            } else if self.heal_at == Time::FAR && self.common.plan.reloads() {
                // Who works on a namespace that stays away does not get far.
                for machine in &self.machines {
                    machine.attach_next();
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
            for machine in &self.machines {
                machine.attach_next();
            }
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
            let mut leak = None;
            for machine in &self.machines {
                let Some(node) = machine.running() else {
                    return Err("an appliance does not run at the end".into());
                };
                leak = leak.or_else(|| node.leaks());
            }
            let Some(leak) = leak else {
                return Ok(());
            };
            if self.now > deadline {
                return Err(format!("an appliance, without any host: {leak}"));
            }
            self.round()?;
        }
    }

    fn hang(&self, what: &str) -> String {
        let patience = PATIENCE.as_secs();
        let left = self.common.commands_left();
        let left = left.unwrap_or_else(|| "no command is under way".to_owned());
        format!("{patience} s were not enough until {what}: {left}")
    }

    /// Every core turns about once, in any order; then time leaps if nobody had anything to do.
    fn round(&mut self) -> Result<(), String> {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        for (index, host) in self.hosts.iter().enumerate() {
            if host.client.is_some() {
                order.push(CoreName::Host(index));
            }
        }
        for (index, machine) in self.machines.iter().enumerate() {
            order.extend((0..machine.cores()).map(|core| CoreName::Node(index, core)));
        }
        for index in (1..order.len()).rev() {
            let other = usize::try_from(self.rng.below(index as u64 + 1)).unwrap_or(0);
            order.swap(index, other);
        }
        let mut work = 0;
        for &core in &order {
            work += self.turn(core);
        }
        if order.is_empty() {
            self.pass_time();
        }
        self.order = order;
        if let Some(failure) = self.common.verdict.borrow_mut().take() {
            return Err(failure);
        }
        self.sleepers.retain(|sleeper| sleeper.until > self.now);
        self.live_on()?;
        if self.has_stopped() {
            self.cut_power(0)?;
        }
        // Who has just started has not turned yet.
        if self.core_count() != self.order.len() {
            self.idle_rounds = 0;
            return Ok(());
        }
        let effects = self.common.trace.effects();
        self.spinning = match self.spinning.1 == effects {
            true => (self.spinning.0 + 1, effects),
            false => (0, effects),
        };
        if self.spinning.0 >= SPIN_ROUNDS {
            self.leap();
            return Ok(());
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

    fn core_count(&self) -> usize {
        let nodes: usize = self.machines.iter().map(Machine::cores).sum();
        self.clients().count() + nodes
    }

    /// A script has come to its point.
    fn has_stopped(&self) -> bool {
        self.common.plan.cut_by_hand && self.machines[0].supply.has_stopped()
    }

    fn pass_time(&mut self) {
        let step = 1 + self.rng.below(self.common.plan.turn_nanos_max);
        self.now = Time(self.now.0 + step);
        self.common.trace.set_now(self.now);
        self.common.hub.advance(self.now);
        for machine in &self.machines {
            machine.advance(self.now);
        }
    }

    fn turn(&mut self, core: CoreName) -> usize {
        self.pass_time();
        if self.sleepers.iter().any(|sleeper| sleeper.core == core) || self.has_stopped() {
            return 0;
        }
        let Some(reactor) = self.reactor(core) else {
            return 0;
        };
        let work = reactor.poll_once(self.now);
        if work > 0 {
            let number = match core {
                CoreName::Host(index) => index,
                CoreName::Node(index, core) => 1000 + 100 * index + core,
            };
            let words = [event::TURN, number as u64, work as u64];
            self.common.trace.mark(words);
        }
        work
    }

    fn reactor(&self, core: CoreName) -> Option<&Reactor> {
        match core {
            CoreName::Host(index) => Some(&self.hosts[index].client.as_ref()?.reactor),
            CoreName::Node(index, core) => self.machines[index].reactor(core),
        }
    }

    /// Nobody has anything to do now: time passes until somebody has.
    fn leap(&mut self) {
        let mut next = self.common.hub.next_event().unwrap_or(Time::FAR);
        if self.mischief_left > 0 {
            next = next.min(self.next_mischief);
        }
        next = next.min(self.heal_at);
        for &core in &self.order {
            let asleep = self.sleepers.iter().find(|sleeper| sleeper.core == core);
            let deadline = match asleep {
                Some(sleeper) => Some(sleeper.until),
                None => self.reactor(core).and_then(Reactor::next_deadline),
            };
            next = next.min(deadline.unwrap_or(Time::FAR));
        }
        for machine in &self.machines {
            next = next.min(machine.next_event());
        }
        for host in self.hosts.iter().filter(|host| host.client.is_none()) {
            next = next.min(host.back_at);
        }
        if next != Time::FAR {
            self.now = self.now.max(next);
        }
        self.idle_rounds = 0;
        self.spinning.0 = 0;
    }

    /// What happens to the machines by the passing of time, and the end of faults that last.
    fn live_on(&mut self) -> Result<(), String> {
        if self.now >= self.heal_at {
            self.heal();
        }
        for machine in &mut self.machines {
            machine.live_on(self.now)?;
        }
        let nodes = &self.machines;
        self.sleepers.retain(|sleeper| match sleeper.core {
            CoreName::Node(index, core) => nodes[index].reactor(core).is_some(),
            CoreName::Host(_) => true,
        });
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            if host.client.is_none() && self.now >= host.back_at {
                self.start_host(index, true);
            }
        }
        Ok(())
    }

    fn start_host(&mut self, index: usize, again: bool) {
        let seed = self.rng.next_u64();
        let ip = self.hosts[index].ip;
        self.common.hub.restore_power(ip);
        let client = Client::start(&self.common, (index, ip), seed, self.now, again);
        self.hosts[index].client = Some(client);
        if again {
            self.note(&format!("host {index} is back"));
        }
    }

    /// A host's process ends, or the host loses its power.
    fn end_host(&mut self, power: bool) {
        let index = self.rng.below(self.hosts.len() as u64) as usize;
        let off = match power {
            true => Duration::from_millis(self.rng.below(3_000)),
            false => Duration::from_micros(self.rng.below(10_000)),
        };
        let host = &mut self.hosts[index];
        let Some(client) = host.client.take() else {
            return;
        };
        host.back_at = self.now.plus(off);
        match power {
            true => self.common.hub.cut_power(host.ip),
            false => self.common.hub.end_process(host.ip),
        }
        drop(client);
        self.sleepers
            .retain(|sleeper| sleeper.core != CoreName::Host(index));
        self.common.crash(index);
    }

    fn cut_power(&mut self, index: usize) -> Result<(), String> {
        self.common.power_failed.set(true);
        self.machines[index].cut_power(self.now)?;
        for model in &self.common.models[index] {
            model.borrow_mut().cut_power();
        }
        Ok(())
    }

    fn heal(&mut self) {
        self.note("the network is whole, the disks have space");
        self.heal_at = Time::FAR;
        self.common.hub.heal();
        self.machines.iter().for_each(Machine::heal);
    }

    /// No more faults.
    fn calm_down(&mut self) -> Result<(), String> {
        self.mischief_left = 0;
        self.sleepers.clear();
        self.heal();
        for machine in &mut self.machines {
            machine.calm_down(self.now)?;
        }
        Ok(())
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
        let index = self.rng.below(self.machines.len() as u64) as usize;
        let machine = &mut self.machines[index];
        match kind {
            Mischief::Reset | Mischief::HalfReset | Mischief::HalfClose => self.disturb(kind),
            Mischief::Partition => {
                let host = self.rng.below(self.hosts.len() as u64) as usize;
                self.common.hub.part(host_ip(host));
                self.heal_within(1_500);
            }
            Mischief::SlowCore => self.slow_core(),
            Mischief::DiskFull => {
                if let Some(medium) = machine.plain_medium() {
                    medium.set_full(true);
                }
                self.heal_within(100);
            }
            Mischief::DiskGone => {
                if let Some(medium) = machine.plain_medium() {
                    medium.set_gone(true);
                }
            }
            Mischief::MemberGone => machine.move_member(self.now),
            Mischief::Scrub => machine.scrub(),
            Mischief::DriveFatal => machine.fail_drive(),
            Mischief::DriveGone => self.pull_drive(index),
            Mischief::Kill if machine.is_on() => machine.kill(self.now)?,
            Mischief::PowerCut => self.cut_power(index)?,
            Mischief::Restart => machine.drain(self.now),
            Mischief::Reload => machine.reload(),
            Mischief::Offer => machine.change_offer(),
            Mischief::HostCrash => self.end_host(false),
            Mischief::HostVanish => self.end_host(true),
            Mischief::Kill => {}
        }
        Ok(())
    }

    /// A drive is pulled out, and loses its cache.
    fn pull_drive(&mut self, index: usize) {
        let pulled = self.machines[index].pull_drive();
        let namespaces = self.common.plan.nodes[index].namespaces.iter();
        for (namespace, model) in namespaces.zip(&self.common.models[index]) {
            if Some(namespace.floor) == pulled {
                model.borrow_mut().cut_power();
            }
        }
    }

    fn slow_core(&mut self) {
        if self.order.is_empty() {
            return;
        }
        let core = self.order[self.rng.below(self.order.len() as u64) as usize];
        let every = self.common.plan.mischief_every;
        let until = self.now.plus(every.min(Duration::from_millis(10)));
        self.sleepers.push(Sleeper { core, until });
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

    fn heal_within(&mut self, millis_max: u64) {
        let time = Duration::from_millis(1 + self.rng.below(millis_max));
        let at = self.now.plus(time);
        if self.heal_at == Time::FAR {
            self.heal_at = at;
        }
    }

    fn note(&self, what: &str) {
        let words = [event::FAULT, what.len() as u64, 0];
        self.common.trace.note(words, || what.to_string());
    }
}

/// A host's machine.
fn host_ip(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(
        10,
        0,
        1,
        u8::try_from(index + 1).unwrap_or(0xff),
    ))
}
