//! What is exported: subsystems, their namespaces, who may connect, and where.
//!
//! The registry is shared by all cores. Its locks are held for moments, by the control path alone:
//! Connect, Identify, log pages, changes. Commands on I/O queues never come here.
//!
//! Invariants:
//! - A controller id belongs to at most one living controller of its subsystem.
//! - The generation counter grows with every change that a discovery log page shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use corebay_nvme::spec::nqn::Nqn;
use hashbrown::HashMap;

use crate::{
    controller::{Controller, IoCounters},
    feature::{FeatureChange, Features},
    limits::CNTLID_MAX,
    lost::LostWrites,
    namespace::NamespaceSpec,
};

/// Names a subsystem within its registry, for as long as the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubsystemId(pub u32);

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every host.
    Any,
    /// The hosts with these NQNs.
    Hosts(BTreeSet<Nqn>),
}

impl Access {
    /// True where this host may connect.
    #[must_use]
    pub fn admits(&self, host: &Nqn) -> bool {
        match self {
            Self::Any => true,
            Self::Hosts(hosts) => hosts.contains(host),
        }
    }
}

/// An address that hosts connect to (a port, in the specification's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Its identifier, from 1 (PORTID).
    pub port_id: u16,
    /// The transport spoken there.
    pub transport: TransportType,
    /// The address, possibly an unspecified one (all of the machine's).
    pub address: SocketAddr,
    /// The discovery subsystem is served there.
    pub discovery: bool,
    /// Subsystems with namespaces are served there.
    pub subsystems: bool,
}

/// The transports of discovery log entries (TRTYPE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportType {
    /// NVMe/TCP.
    Tcp,
}

/// Another discovery service that hosts are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referral {
    /// Its transport.
    pub transport: TransportType,
    /// Its address.
    pub address: SocketAddr,
    /// Its subsystem NQN.
    pub nqn: Nqn,
}

/// All that is exported.
#[derive(Debug)]
pub struct Registry<M> {
    state: Mutex<RegistryState<M>>,
    turn: AtomicUsize,
    discovery: Arc<Subsystem<M>>,
}

#[derive(Debug)]
struct RegistryState<M> {
    subsystems: Vec<Arc<Subsystem<M>>>,
    by_nqn: BTreeMap<Nqn, Arc<Subsystem<M>>>,
    listens: Vec<Listen>,
    referrals: Vec<Referral>,
    generation: u64,
    next_id: u32,
    health: Health,
}

/// What the appliance remembers of its former runs, for the health log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Starts, this one included (Power Cycles).
    pub starts: u64,
    /// Runs that did not end cleanly (Unsafe Shutdowns).
    pub unclean_stops: u64,
    /// Seconds of former runs (Power On Hours).
    pub seconds_before: u64,
}

impl<M> Default for Registry<M> {
    fn default() -> Self {
        let names = SubsystemNames {
            nqn: Nqn::discovery(),
            serial: "corebay-discovery".into(),
            model: "corebay discovery".into(),
        };
        let state = RegistryState {
            subsystems: Vec::new(),
            by_nqn: BTreeMap::new(),
            listens: Vec::new(),
            referrals: Vec::new(),
            generation: 1,
            next_id: 1,
            health: Health::default(),
        };
        Self {
            state: Mutex::new(state),
            turn: AtomicUsize::new(0),
            discovery: Arc::new(Subsystem::new(SubsystemId(0), names, Access::Any, None)),
        }
    }
}

impl<M> Registry<M> {
    /// Adds a subsystem. `ports` says at which ports it is served; `None`: at all that serve
    /// subsystems.
    pub fn add_subsystem(
        &self,
        names: SubsystemNames,
        access: Access,
        ports: Option<BTreeSet<u16>>,
    ) -> Arc<Subsystem<M>> {
        let mut state = lock(&self.state);
        let id = SubsystemId(state.next_id);
        state.next_id += 1;
        let subsystem = Arc::new(Subsystem::new(id, names, access, ports));
        state.subsystems.push(subsystem.clone());
        let nqn = subsystem.names.nqn.clone();
        state.by_nqn.insert(nqn, subsystem.clone());
        state.generation += 1;
        subsystem
    }

    /// Removes a subsystem; its controllers are for the caller to end.
    pub fn remove_subsystem(&self, id: SubsystemId) -> Option<Arc<Subsystem<M>>> {
        let mut state = lock(&self.state);
        let index = state.subsystems.iter().position(|s| s.id == id)?;
        state.generation += 1;
        let removed = state.subsystems.remove(index);
        let is_it = |known: &Arc<Subsystem<M>>| known.id == id;
        if state.by_nqn.get(&removed.names.nqn).is_some_and(is_it) {
            state.by_nqn.remove(&removed.names.nqn);
        }
        Some(removed)
    }

    /// Replaces where hosts connect.
    pub fn set_listens(&self, listens: Vec<Listen>) {
        let mut state = lock(&self.state);
        state.listens = listens;
        state.generation += 1;
    }

    /// Replaces the referrals.
    pub fn set_referrals(&self, referrals: Vec<Referral>) {
        let mut state = lock(&self.state);
        state.referrals = referrals;
        state.generation += 1;
    }

    /// Counts a change that the discovery log page shows (access, for one).
    pub fn bump_generation(&self) {
        lock(&self.state).generation += 1;
    }

    /// Sets what the health log counts from.
    pub fn set_health(&self, health: Health) {
        lock(&self.state).health = health;
    }

    /// What the health log counts from.
    #[must_use]
    pub fn health(&self) -> Health {
        lock(&self.state).health
    }

    /// The subsystem with this NQN.
    #[must_use]
    pub fn find(&self, nqn: &Nqn) -> Option<Arc<Subsystem<M>>> {
        if *nqn == self.discovery.names.nqn {
            return Some(self.discovery.clone());
        }
        lock(&self.state).by_nqn.get(nqn).cloned()
    }

    /// Counts up, for what is dealt out in turn.
    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The discovery subsystem.
    #[must_use]
    pub fn discovery(&self) -> &Arc<Subsystem<M>> {
        &self.discovery
    }

    /// All subsystems but the discovery subsystem.
    #[must_use]
    pub fn subsystems(&self) -> Vec<Arc<Subsystem<M>>> {
        lock(&self.state).subsystems.clone()
    }

    /// What a discovery log page is made of: generation, ports and referrals.
    #[must_use]
    pub fn discovery_view(&self) -> (u64, Vec<Listen>, Vec<Referral>) {
        let state = lock(&self.state);
        (
            state.generation,
            state.listens.clone(),
            state.referrals.clone(),
        )
    }
}

/// A subsystem's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemNames {
    /// NVM Subsystem NVMe Qualified Name.
    pub nqn: Nqn,
    /// Serial Number, at most 20 ASCII characters.
    pub serial: String,
    /// Model Number, at most 40 ASCII characters.
    pub model: String,
}

/// The space that is left beneath a subsystem's namespaces, as the health log says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// What is left, in percent.
    pub percent: u8,
    /// Where less is left, hosts are warned.
    pub threshold_percent: u8,
    /// They are.
    pub low: bool,
}

impl Default for Spare {
    fn default() -> Self {
        Self {
            percent: 100,
            threshold_percent: 10,
            low: false,
        }
    }
}

/// An NVM subsystem.
#[derive(Debug)]
pub struct Subsystem<M> {
    /// Its place in the registry.
    pub id: SubsystemId,
    /// Its names.
    pub names: SubsystemNames,
    ports: Option<BTreeSet<u16>>,
    lost: LostWrites,
    state: Mutex<SubsystemState<M>>,
}

#[derive(Debug)]
struct SubsystemState<M> {
    access: Access,
    namespaces: BTreeMap<u32, Arc<NamespaceSpec<M>>>,
    controllers: HashMap<u16, Arc<Controller<M>>>,
    last_cntlid: u16,
    saved_features: Features,
    /// Controllers whose association has ended while their commands execute.
    retired: Vec<Arc<Controller<M>>>,
    /// What the controllers that are forgotten have done.
    past: IoCounters,
    spare: Spare,
}

/// No controller id is free.
#[derive(Debug, PartialEq, Eq)]
pub struct NoControllerId;

impl<M> Subsystem<M> {
    fn new(
        id: SubsystemId,
        names: SubsystemNames,
        access: Access,
        ports: Option<BTreeSet<u16>>,
    ) -> Self {
        let state = SubsystemState {
            access,
            namespaces: BTreeMap::new(),
            controllers: HashMap::new(),
            last_cntlid: 0,
            saved_features: Features::default(),
            retired: Vec::new(),
            past: IoCounters::default(),
            spare: Spare::default(),
        };
        Self {
            id,
            names,
            ports,
            lost: LostWrites::default(),
            state: Mutex::new(state),
        }
    }

    /// True for the discovery subsystem.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.id == SubsystemId(0)
    }

    /// True where this host may connect.
    #[must_use]
    pub fn admits(&self, host: &Nqn) -> bool {
        self.state().access.admits(host)
    }

    /// Who may connect.
    #[must_use]
    pub fn access(&self) -> Access {
        self.state().access.clone()
    }

    /// Replaces who may connect. Those who are connected stay.
    pub fn set_access(&self, access: Access) {
        self.state().access = access;
    }

    /// True where the subsystem is served at this port.
    #[must_use]
    pub fn is_served_at(&self, listen: &Listen) -> bool {
        match (&self.ports, self.is_discovery()) {
            (_, true) => listen.discovery,
            (None, false) => listen.subsystems,
            (Some(ports), false) => listen.subsystems && ports.contains(&listen.port_id),
        }
    }

    /// True where these are the ports that it is served at.
    #[must_use]
    pub fn is_served_only_at(&self, ports: &BTreeSet<u16>) -> bool {
        self.ports.as_ref() == Some(ports)
    }

    /// Adds or replaces a namespace.
    pub fn add_namespace(&self, spec: Arc<NamespaceSpec<M>>) {
        self.state().namespaces.insert(spec.nsid, spec);
    }

    /// Removes a namespace.
    pub fn remove_namespace(&self, nsid: u32) -> Option<Arc<NamespaceSpec<M>>> {
        self.lost.forget(nsid);
        self.state().namespaces.remove(&nsid)
    }

    /// The namespace with this id.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<Arc<NamespaceSpec<M>>> {
        self.state().namespaces.get(&nsid).cloned()
    }

    /// All namespaces, by ascending NSID.
    #[must_use]
    pub fn namespaces(&self) -> Vec<Arc<NamespaceSpec<M>>> {
        self.state().namespaces.values().cloned().collect()
    }

    /// Writes to this namespace that were acknowledged may be lost: each host that is connected learns it
    /// by its next Flush, which fails.
    pub fn writes_may_be_lost(&self, nsid: u32) {
        let controllers = self.controllers();
        let hosts = controllers.iter().map(|one| one.host_nqn.clone());
        self.lost.note(nsid, hosts);
    }

    /// True where a Flush of this host is to fail, as writes to the namespace may be lost; once.
    #[must_use]
    pub fn tell_of_lost_writes(&self, nsid: u32, host: &Nqn) -> bool {
        self.lost.tell(nsid, host)
    }

    /// True where a completed write to one of the namespaces may be lost with the power (VWC).
    #[must_use]
    pub fn has_volatile_cache(&self) -> bool {
        let state = self.state();
        state.namespaces.values().any(|n| n.info.volatile_cache)
    }

    /// Makes a controller with a free controller id, or with `wanted` if that is given and free.
    ///
    /// # Errors
    /// Where no id (or not that one) is free.
    pub fn add_controller(
        &self,
        wanted: Option<u16>,
        make: impl FnOnce(u16, Features) -> Arc<Controller<M>>,
    ) -> Result<Arc<Controller<M>>, NoControllerId> {
        let mut state = self.state();
        let cntlid = match wanted {
            Some(id) if id == 0 || id > CNTLID_MAX => return Err(NoControllerId),
            Some(id) if state.controllers.contains_key(&id) => return Err(NoControllerId),
            Some(id) => id,
            None => {
                // Ids are taken in turn, so that one is not reused right after its controller ended.
                let next = |id: u16| if id >= CNTLID_MAX { 1 } else { id + 1 };
                let mut id = next(state.last_cntlid);
                let mut tried = 0;
                while state.controllers.contains_key(&id) {
                    id = next(id);
                    tried += 1;
                    if tried > CNTLID_MAX {
                        return Err(NoControllerId);
                    }
                }
                state.last_cntlid = id;
                id
            }
        };
        let controller = make(cntlid, state.saved_features.clone());
        state.controllers.insert(cntlid, controller.clone());
        Ok(controller)
    }

    /// The controller with this id.
    #[must_use]
    pub fn controller(&self, cntlid: u16) -> Option<Arc<Controller<M>>> {
        self.state().controllers.get(&cntlid).cloned()
    }

    /// What all hosts, past and present, have done.
    #[must_use]
    pub fn totals(&self) -> IoCounters {
        let state = self.state();
        let totals = IoCounters::default();
        totals.absorb(&state.past);
        for controller in state.controllers.values().chain(&state.retired) {
            totals.absorb(&controller.totals());
        }
        totals
    }

    /// All controllers, by ascending id.
    #[must_use]
    pub fn controllers(&self) -> Vec<Arc<Controller<M>>> {
        let mut all: Vec<_> = self.state().controllers.values().cloned().collect();
        all.sort_by_key(|c| c.cntlid);
        all
    }

    /// Forgets a controller whose association has ended.
    pub fn retire_controller(&self, controller: &Arc<Controller<M>>) {
        let mut state = self.state();
        let known = state.controllers.get(&controller.cntlid);
        if known.is_some_and(|known| Arc::ptr_eq(known, controller)) {
            state.controllers.remove(&controller.cntlid);
        }
        state.retired.push(controller.clone());
        state.forget_quiet();
    }

    /// True while commands of the host's former associations execute.
    #[must_use]
    pub fn is_host_quiescing(&self, host_nqn: &Nqn, host_id: &[u8; 16]) -> bool {
        let mut state = self.state();
        state.forget_quiet();
        state
            .retired
            .iter()
            .any(|c| c.host_nqn == *host_nqn && c.host_id == *host_id)
    }

    /// The features that new controllers start with.
    #[must_use]
    pub fn saved_features(&self) -> Features {
        self.state().saved_features.clone()
    }

    /// Changes what controllers to come start with. It is for the environment to see to it that
    /// this is known again at the next start.
    pub fn save_feature(&self, change: FeatureChange) {
        change.apply(&mut self.state().saved_features);
    }

    /// The space that is left beneath the namespaces.
    #[must_use]
    pub fn spare(&self) -> Spare {
        self.state().spare
    }

    /// Notes the space that is left; true where hosts are to be warned from now on.
    pub fn set_spare(&self, spare: Spare) -> bool {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.spare, spare);
        spare.low && !before.low
    }

    /// Adds what former runs have counted.
    pub fn add_past(&self, past: &IoCounters) {
        self.state().past.absorb(past);
    }

    fn state(&self) -> MutexGuard<'_, SubsystemState<M>> {
        lock(&self.state)
    }
}

impl<M> SubsystemState<M> {
    /// Forgets ended controllers whose last command has ended, and keeps what they counted.
    fn forget_quiet(&mut self) {
        let past = &self.past;
        self.retired.retain(|former| {
            let busy = former.is_quiescing() || !former.queues().is_empty();
            if !busy {
                past.absorb(&former.totals());
            }
            busy
        });
    }
}

/// Takes a lock. A panic aborts the process, so a lock is never found poisoned there; in tests the
/// state is still the one to look at.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
