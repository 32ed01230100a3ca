//! Exports: which volumes hosts see, as which namespaces of which subsystems, and who may connect.
//!
//! Invariants:
//! - A subsystem of the configuration says itself who may connect; one that was made for exports admits
//!   the hosts of all its exports, and goes with the last of them.
//! - A namespace is shown once every core has opened it, and taken back before any core closes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use corebay_conf::{
    Nqn,
    appliance::{Namespace, Serial},
};
use corebay_core::disk::DiskError;
use corebay_lvol::{Export, VolumeId, error::PoolError, format::page::VolumeRecord};
use corebay_target::{
    controller::Event,
    fabrics::{end_association, report, tell_discovery},
    namespace::{Identity, Live, NamespaceSpec},
    subsystem::{Access, Registry, Subsystem, SubsystemId, SubsystemNames},
};
use tracing::{info, warn};

use super::{
    BUSY_STEP, NamedVolume, VolumeMedium,
    home::{Home, KeptExport, OpenPool, refresh},
};
use crate::appliance::environment::Medium;

type Spec = NamespaceSpec<Medium>;

/// The model number of subsystems that are made for exports.
const MODEL: &str = "corebay";

/// A volume that hosts see.
pub struct Attached {
    /// What every core opens.
    pub medium: Arc<VolumeMedium>,
    /// Where it is.
    pub subsystem: Arc<Subsystem<Medium>>,
    /// As which namespace.
    pub nsid: u32,
}

/// The NQN of the subsystem that a volume has for itself.
pub fn own_nqn(uuid: [u8; 16]) -> String {
    let uuid = uuid::Uuid::from_bytes(uuid);
    format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}")
}

/// The serial number of a subsystem that says none.
pub fn derived_serial(nqn: &Nqn) -> String {
    Serial::derived(nqn).as_str().to_owned()
}

/// The subsystem of an export, made where there is none; true where it was made.
pub fn subsystem_for(
    registry: &Registry<Medium>,
    export: &Export,
) -> Result<(Arc<Subsystem<Medium>>, bool), String> {
    let nqn: Nqn = export
        .subsystem
        .parse()
        .map_err(|error| format!("{} is no NQN: {error}", export.subsystem))?;
    if nqn.is_discovery() {
        return Err("this is the NQN of the discovery service".to_owned());
    }
    if let Some(known) = registry.find(&nqn) {
        return Ok((known, false));
    }
    let names = SubsystemNames {
        serial: export.serial.clone(),
        model: MODEL.to_owned(),
        nqn,
    };
    let nobody = Access::Hosts(BTreeSet::new());
    Ok((registry.add_subsystem(names, nobody, None), true))
}

impl Home {
    /// Exports what pools say, into subsystems that there are. What does not fit is told of. In the turn of
    /// showing.
    pub async fn attach_kept(&self, kept: Vec<(KeptExport, Arc<Subsystem<Medium>>)>) {
        self.admit_all(kept.iter().map(|(_, subsystem)| subsystem));
        for (kept, subsystem) in kept {
            let Some(pool) = self.by_uuid(&kept.pool) else {
                continue;
            };
            let nsid = kept.export.nsid;
            let shown = self.show_new(&pool, kept.id, &subsystem, nsid, None).await;
            if let Err(why) = shown {
                let name = pool.pool.volume(kept.id).map(|record| record.name);
                let (pool, volume) = (pool.pool.name(), name.unwrap_or_default());
                warn!("the volume {pool}/{volume} is not exported: {why}");
            }
        }
    }

    /// The configuration names these volumes from now on: which are not there is told.
    pub fn set_named(&self, named: Vec<NamedVolume>) {
        let is_there = |named: &&NamedVolume| {
            let pool = self.find(&named.pool);
            pool.is_some_and(|pool| pool.pool.find(&named.volume).is_some())
        };
        for named in &named {
            if let Some(elsewhere) = self.shown_by_pool(named) {
                warn!("{elsewhere}");
            }
        }
        for named in named.iter().filter(|named| !is_there(named)) {
            warn!(
                "namespace {} of {} waits for its volume: `corebay volume create {}/{} --size SIZE` \
                 makes it",
                named.namespace.nsid, named.subsystem.names.nqn, named.pool, named.volume
            );
        }
        *self.named.borrow_mut() = named;
    }

    /// Where hosts see a volume that the configuration names because its pool says so, in words.
    fn shown_by_pool(&self, named: &NamedVolume) -> Option<String> {
        let pool = self.find(&named.pool)?;
        let id = pool.pool.find(&named.volume)?;
        let attached = pool.attached.borrow();
        let attached = attached.get(&id).filter(|there| there.medium.by_pool)?;
        let (nsid, nqn) = (named.namespace.nsid, &named.subsystem.names.nqn);
        Some(format!(
            "namespace {nsid} of {nqn} is not shown: its volume {of}/{volume} is exported by its pool, as namespace \
             {there} of {by}; `corebay export remove {of}/{volume}` and a reload show it here",
            of = named.pool,
            volume = named.volume,
            there = attached.nsid,
            by = attached.subsystem.names.nqn,
        ))
    }

    /// The configuration has changed. Each pool sees to it in its turn: one whose disk hangs keeps no other
    /// waiting, and what waits there finds what was said last.
    pub fn show_named_anew(self: &Rc<Self>) {
        for pool in self.pools.borrow().iter().cloned() {
            if pool.is_change_awaited.replace(true) {
                continue;
            }
            let home = self.clone();
            self.core.spawn_control(async move {
                let _turn = home.turns.of(&pool.on).await;
                pool.is_change_awaited.set(false);
                let is_open = home
                    .pools
                    .borrow()
                    .iter()
                    .any(|open| Rc::ptr_eq(open, &pool));
                if is_open {
                    home.show_named(&pool).await;
                }
            });
        }
    }

    /// Exports what the configuration names of a pool, and nothing else that no pool says. In its turn.
    pub async fn show_named(&self, pool: &Rc<OpenPool>) {
        let gone: Vec<VolumeId> = {
            let (attached, named) = (pool.attached.borrow(), self.named.borrow());
            let is_gone = |(id, attached): &(&VolumeId, &Attached)| {
                let record = pool.pool.volume(**id);
                let name = record.map_or_else(|_| String::new(), |record| record.name);
                let still = named.iter().any(|named| {
                    named.volume == name
                        && named.subsystem.id == attached.subsystem.id
                        && named.namespace.nsid == attached.nsid
                });
                !attached.medium.by_pool && !still
            };
            let gone = attached.iter().filter(is_gone);
            gone.map(|(id, _)| *id).collect()
        };
        for id in gone {
            self.detach(pool, id).await;
        }
        self.attach_named(pool).await;
    }

    /// Exports the volumes of a pool that the configuration names and that are there. In its turn.
    pub async fn attach_named(&self, pool: &Rc<OpenPool>) {
        let name = pool.pool.name();
        let of_it = |named: &&NamedVolume| named.pool == name;
        let all: Vec<_> = self.named.borrow().iter().filter(of_it).cloned().collect();
        for named in all {
            let _showing = self.turns.of_showing().await;
            let Some(id) = pool.pool.find(&named.volume) else {
                continue;
            };
            if pool.attached.borrow().contains_key(&id) {
                continue;
            }
            let NamedVolume {
                subsystem,
                namespace,
                ..
            } = &named;
            let attached = self.attach(pool, id, subsystem, namespace.nsid, Some(namespace));
            if let Err(why) = attached.await {
                warn!(
                    "the volume {}/{} is not exported: {why}",
                    named.pool, named.volume
                );
            }
        }
    }

    /// Closes all pools: nothing more comes from hosts. True where all is in place.
    pub async fn end(&self) -> bool {
        const BUSY_STEPS: u32 = 500;
        let mut all = true;
        let pools = self.pools.borrow().clone();
        for pool in pools {
            let attached = std::mem::take(&mut *pool.attached.borrow_mut());
            for attached in attached.values() {
                self.detach_everywhere(&attached.subsystem, attached.nsid)
                    .await;
            }
            let mut left = BUSY_STEPS;
            loop {
                match pool.pool.close().await {
                    Err(PoolError::Busy) if left > 0 => {
                        left -= 1;
                        self.core.reactor.sleep(BUSY_STEP).await;
                    }
                    Ok(()) => break,
                    Err(error) => {
                        warn!(pool = pool.pool.name(), %error, "not closed cleanly");
                        all = false;
                        break;
                    }
                }
            }
        }
        all
    }

    /// Opens a volume on every core, and shows it to hosts. `configured` is the namespace that the
    /// configuration describes, if it does. In the turn of showing.
    pub async fn attach(
        &self,
        pool: &Rc<OpenPool>,
        id: VolumeId,
        subsystem: &Arc<Subsystem<Medium>>,
        nsid: u32,
        configured: Option<&Namespace>,
    ) -> Result<(), String> {
        let shown = self.show_new(pool, id, subsystem, nsid, configured).await;
        self.admit(subsystem);
        shown
    }

    async fn show_new(
        &self,
        pool: &Rc<OpenPool>,
        id: VolumeId,
        subsystem: &Arc<Subsystem<Medium>>,
        nsid: u32,
        configured: Option<&Namespace>,
    ) -> Result<(), String> {
        if subsystem.namespace(nsid).is_some() {
            let nqn = &subsystem.names.nqn;
            return Err(format!("{nqn} has another namespace {nsid}"));
        }
        self.show(pool, id, subsystem, nsid, configured).await
    }

    /// Opens a volume on every core, and shows it to hosts as a namespace that is either not there, or
    /// this volume's from before. Who may connect is said by [`admit`](Self::admit).
    pub async fn show(
        &self,
        pool: &Rc<OpenPool>,
        id: VolumeId,
        subsystem: &Arc<Subsystem<Medium>>,
        nsid: u32,
        configured: Option<&Namespace>,
    ) -> Result<(), String> {
        let record = pool.pool.volume(id).map_err(|error| error.to_string())?;
        let spec = spec_of(pool, id, &record, nsid, configured);
        let (medium, spec) = spec.map_err(|error| error.to_string())?;
        let (shown, place) = (spec.clone(), subsystem.id);
        let attached = self.core.call_all(move |core, reply| {
            reply.send(core, core.attach(place, shown.clone()));
        });
        let attached: Result<Vec<()>, DiskError> = attached.await.into_iter().collect();
        if let Err(error) = attached {
            self.detach_everywhere(subsystem, nsid).await;
            return Err(format!("not every core can open it: {error}"));
        }
        subsystem.add_namespace(spec);
        let entry = Attached {
            medium,
            subsystem: subsystem.clone(),
            nsid,
        };
        pool.attached.borrow_mut().insert(id, entry);
        self.tell(subsystem, nsid);
        info!(pool = pool.pool.name(), volume = record.name, subsystem = %subsystem.names.nqn, nsid, "exported");
        Ok(())
    }

    /// Takes a volume from hosts.
    pub async fn detach(&self, pool: &Rc<OpenPool>, id: VolumeId) {
        let _showing = self.turns.of_showing().await;
        let Some(attached) = pool.attached.borrow_mut().remove(&id) else {
            return;
        };
        let Attached {
            subsystem, nsid, ..
        } = attached;
        subsystem.remove_namespace(nsid);
        self.detach_everywhere(&subsystem, nsid).await;
        self.tell(&subsystem, nsid);
        info!(pool = pool.pool.name(), subsystem = %subsystem.names.nqn, nsid, "no longer exported");
        let made = self.made.borrow().contains(&subsystem.id);
        if made && subsystem.namespaces().is_empty() {
            self.made.borrow_mut().remove(&subsystem.id);
            self.core.registry.remove_subsystem(subsystem.id);
            for controller in subsystem.controllers() {
                end_association(&self.core, &controller, "its subsystem is gone");
            }
        } else {
            self.admit(&subsystem);
        }
    }

    pub async fn detach_everywhere(&self, subsystem: &Arc<Subsystem<Medium>>, nsid: u32) {
        let id = subsystem.id;
        let closed = self.core.call_all(move |core, reply| {
            core.table(id).detach(nsid);
            reply.send(core, ());
        });
        closed.await;
    }

    /// Lets a subsystem that was made for exports admit the hosts of all of them.
    pub fn admit(&self, subsystem: &Arc<Subsystem<Medium>>) {
        if !self.made.borrow().contains(&subsystem.id) {
            return;
        }
        let exports = self.exports_of(&subsystem.names.nqn);
        self.admit_as(subsystem, access_of(exports.iter()));
    }

    /// The same for many, which looks at all exports once.
    pub fn admit_all<'s>(&self, subsystems: impl Iterator<Item = &'s Arc<Subsystem<Medium>>>) {
        let mut exports: BTreeMap<String, Vec<Export>> = BTreeMap::new();
        for pool in self.pools.borrow().iter() {
            for (.., export) in pool.pool.exports() {
                let of_it = exports.entry(export.subsystem.clone()).or_default();
                of_it.push(export);
            }
        }
        let subsystems: BTreeMap<SubsystemId, _> = subsystems.map(|each| (each.id, each)).collect();
        for (id, subsystem) in subsystems {
            if self.made.borrow().contains(&id) {
                let of_it = exports.get(subsystem.names.nqn.as_str());
                let access = access_of(of_it.into_iter().flatten());
                self.admit_as(subsystem, access);
            }
        }
    }

    fn admit_as(&self, subsystem: &Arc<Subsystem<Medium>>, access: Access) {
        if subsystem.access() == access {
            return;
        }
        subsystem.set_access(access.clone());
        for controller in subsystem.controllers() {
            if !access.admits(&controller.host_nqn) {
                end_association(&self.core, &controller, "the host may not connect any more");
            }
        }
        self.tell_discovery();
    }

    /// What all pools keep of a subsystem's exports.
    fn exports_of(&self, nqn: &Nqn) -> Vec<Export> {
        let pools = self.pools.borrow();
        let exports = pools.iter();
        exports
            .flat_map(|pool| pool.pool.exports_in(nqn.as_str()))
            .collect()
    }

    /// The numbers that a subsystem's namespaces have, exports that are not shown, and orders under way.
    pub fn taken_nsids(
        &self,
        subsystem: Option<&Arc<Subsystem<Medium>>>,
        nqn: &Nqn,
    ) -> BTreeSet<u32> {
        let mut taken: BTreeSet<u32> = self.exports_of(nqn).iter().map(|e| e.nsid).collect();
        let shown = subsystem.map(|subsystem| subsystem.namespaces());
        taken.extend(shown.into_iter().flatten().map(|spec| spec.nsid));
        taken.extend(self.turns.promised_nsids(nqn.as_str()));
        taken
    }

    /// Whether the configuration names a volume of a pool as a namespace.
    pub fn is_pool_named(&self, pool: &str) -> bool {
        self.named.borrow().iter().any(|named| named.pool == pool)
    }

    /// Whether the configuration names a volume as a namespace.
    pub fn is_named(&self, pool: &str, volume: &str) -> bool {
        let named = self.named.borrow();
        let mut named = named.iter();
        named.any(|named| named.pool == pool && named.volume == volume)
    }

    /// Tells a subsystem's hosts that a namespace has changed.
    pub fn tell(&self, subsystem: &Arc<Subsystem<Medium>>, nsid: u32) {
        for controller in subsystem.controllers() {
            controller.namespace_changed(nsid);
            report(&self.core, &controller, Event::NamespaceAttributeChanged);
        }
    }

    /// Tells the hosts that keep a connection to the discovery subsystem.
    pub fn tell_discovery(&self) {
        self.core.registry.bump_generation();
        tell_discovery(&self.core);
    }
}

/// Whom these exports admit, all together.
fn access_of<'e>(exports: impl Iterator<Item = &'e Export> + Clone) -> Access {
    if exports.clone().any(|export| export.allow_any_host) {
        return Access::Any;
    }
    let hosts = exports.flat_map(|export| &export.hosts);
    Access::Hosts(hosts.filter_map(|host| host.parse().ok()).collect())
}

fn spec_of(
    pool: &Rc<OpenPool>,
    id: VolumeId,
    record: &VolumeRecord,
    nsid: u32,
    configured: Option<&Namespace>,
) -> Result<(Arc<VolumeMedium>, Arc<Spec>), PoolError> {
    let live = Arc::new(Live::default());
    refresh(&live, id, record, pool);
    let handle = pool.pool.volume_handle(id)?;
    let info = handle.info();
    let medium = Arc::new(VolumeMedium {
        pool: pool.pool.uuid(),
        name: format!("{}/{}", pool.pool.name(), record.name),
        handle,
        live: live.clone(),
        by_pool: configured.is_none(),
    });
    let said = |namespace: &Namespace| namespace.uuid.map(|uuid| *uuid.as_bytes());
    let uuid = configured.and_then(said).unwrap_or(record.uuid);
    let nguid = configured.and_then(|namespace| namespace.nguid);
    let nguid = nguid.map_or(record.nguid, |nguid| nguid.bytes());
    let eui64 = configured.and_then(|namespace| namespace.eui64);
    let spec = NamespaceSpec {
        nsid,
        identity: Identity {
            uuid,
            // The same 128 bits unless one is given: hosts that know only one still recognise it.
            nguid: if nguid == [0; 16] { uuid } else { nguid },
            eui64: eui64.map_or(record.eui64, |eui64| eui64.bytes()),
        },
        medium: Medium::Volume(medium.clone()),
        info,
        read_only: configured.is_some_and(|namespace| namespace.read_only),
        live: Some(live),
    };
    Ok((medium, Arc::new(spec)))
}
