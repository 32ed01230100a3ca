//! Subsystems: who may connect, where, and to which namespaces.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::stores::{Owners, stores, unknown_help};
use crate::appliance::{
    Access, ArrayId, DiskId, ListenerId, NamedVolume, NamedVolumeId, Namespace, Serial, Store,
    Subsystem,
};
use crate::diagnostic::{Draft, Sink, Span};
use crate::limits;
use crate::reader::{At, Field, listed};
use crate::schema::{RawAppliance, RawNamespace, RawSubsystem};
use crate::units::quoted;
use corebay_nvme::spec::nqn::Nqn;

pub(super) fn check(
    raw: &RawAppliance,
    owners: &Owners,
    sink: &mut Sink,
) -> Option<(Vec<Subsystem>, Vec<NamedVolume>)> {
    let mut checker = Checker::new(raw, owners, sink);
    checker.nqns();
    checker.count();
    let subsystems: Vec<_> = raw
        .subsystems
        .iter()
        .map(|subsystem| checker.subsystem(subsystem))
        .collect();
    checker.unused_disks();
    let volumes = checker.volumes;
    let subsystems: Option<Vec<_>> = subsystems.into_iter().collect();
    Some((subsystems?, volumes))
}

/// What the subsystems have in common.
struct Checker<'r, 's> {
    raw: &'r RawAppliance,
    /// Disks and arrays, by name.
    stores: HashMap<&'r str, Store>,
    owners: &'r Owners,
    volumes: Vec<NamedVolume>,
    /// Some disk has no name that could be read: a name that is unknown may be that one's.
    stores_unnamed: bool,
    listeners: HashMap<&'r str, usize>,
    listeners_unnamed: bool,
    /// Where each disk or array is exported.
    exported: HashMap<Store, Exported>,
    uuids: HashMap<uuid::Uuid, Option<Span>>,
    nguids: HashMap<[u8; 16], Option<Span>>,
    eui64s: HashMap<[u8; 8], Option<Span>>,
    sink: &'s mut Sink,
}

/// A namespace that exports a disk.
struct Exported {
    what: String,
    span: Option<Span>,
}

impl<'r, 's> Checker<'r, 's> {
    fn new(raw: &'r RawAppliance, owners: &'r Owners, sink: &'s mut Sink) -> Checker<'r, 's> {
        let listener_names = raw.listeners.iter().enumerate().rev();
        Checker {
            raw,
            stores: stores(raw),
            owners,
            volumes: Vec::new(),
            stores_unnamed: raw.disks.iter().any(|disk| disk.name.value().is_none())
                || raw.arrays.iter().any(|array| array.name.value().is_none()),
            listeners: listener_names
                .filter_map(|(at, one)| Some((one.name.value()?.as_str(), at)))
                .collect(),
            listeners_unnamed: raw
                .listeners
                .iter()
                .any(|one| matches!(one.name, Field::Wrong)),
            exported: HashMap::new(),
            uuids: HashMap::new(),
            nguids: HashMap::new(),
            eui64s: HashMap::new(),
            sink,
        }
    }

    fn nqns(&mut self) {
        let mut seen: HashMap<&Nqn, Option<Span>> = HashMap::new();
        for nqn in self
            .raw
            .subsystems
            .iter()
            .filter_map(|subsystem| subsystem.nqn.given())
        {
            if nqn.value.is_discovery() {
                let draft = Draft::error("this is the NQN of the discovery service");
                let draft = draft.at(nqn.span, "expected the NQN of a subsystem");
                self.sink.push(draft.help("every listener serves discovery by itself (`discovery = true`); give the subsystem a name of its own"));
            } else if let Some(first) = seen.get(&nqn.value) {
                let draft = Draft::error(format!("there are two subsystems named `{}`", nqn.value));
                self.sink.push(
                    draft
                        .at(nqn.span, "again here")
                        .and_at(*first, "first here"),
                );
            } else {
                seen.insert(&nqn.value, nqn.span);
            }
        }
    }

    fn count(&mut self) {
        if self.raw.subsystems.is_empty() && self.raw.pools.is_empty() {
            let draft = Draft::warning("there is no [[subsystem]]: this file exports nothing");
            self.sink.push(
                draft
                    .help("add, also where volumes are to be exported later:\n[[subsystem]]\nnqn = \"nqn.2024-01.com.example:disk-1\"")
                    .by_absence(),
            );
        }
        let mut count = 0;
        for namespace in self
            .raw
            .subsystems
            .iter()
            .flat_map(|subsystem| &subsystem.namespaces)
        {
            count += 1;
            if count > limits::NAMESPACES_MAX {
                let label = format!("expected at most {} in all", limits::NAMESPACES_MAX);
                self.sink
                    .push(Draft::error("there are too many namespaces").at(namespace.span, label));
                return;
            }
        }
    }

    fn subsystem(&mut self, raw: &RawSubsystem) -> Option<Subsystem> {
        let access = self.access(raw);
        let listeners = self.listeners_of(raw);
        let namespaces = self.namespaces(raw);
        let nqn = raw.nqn.value()?.clone();
        let serial = match raw.serial.value() {
            Some(serial) => serial.clone(),
            None => Serial::derived(&nqn),
        };
        Some(Subsystem {
            serial,
            nqn,
            model: raw.model.clone(),
            access,
            listeners: listeners?,
            max_namespaces: raw.max_namespaces.value,
            namespaces: namespaces?,
        })
    }

    fn access(&mut self, raw: &RawSubsystem) -> Access {
        let any_host = raw
            .access
            .any_host
            .given()
            .filter(|any_host| any_host.value);
        let hosts = raw.access.hosts.given();
        if let (Some(any_host), Some(hosts)) =
            (any_host, hosts.filter(|hosts| !hosts.value.is_empty()))
        {
            let draft = Draft::error("`allow_any_host` and `hosts` contradict each other");
            let draft = draft
                .at(hosts.span, "only these hosts")
                .and_at(any_host.span, "every host");
            self.sink.push(
                draft.help("leave out `allow_any_host = true` to admit only the hosts listed"),
            );
        }
        if any_host.is_some() {
            return Access::AnyHost;
        }
        let list = hosts
            .map(|hosts| hosts.value.as_slice())
            .unwrap_or_default();
        let misread =
            matches!(raw.access.hosts, Field::Wrong) || matches!(raw.access.any_host, Field::Wrong);
        if list.is_empty() && !misread {
            let draft = Draft::warning("no host may connect to this subsystem");
            let span = hosts.map_or(Some(raw.span), |hosts| hosts.span);
            let draft = draft
                .at(span, "neither `hosts` nor `allow_any_host`")
                .by_absence();
            let help = "list the hosts, as in hosts = [\"nqn.2014-08.org.nvmexpress:uuid:...\"] (`nvme show-hostnqn` \
                        says a host's), or say allow_any_host = true";
            self.sink.push(draft.help(help));
        }
        let mut seen: HashMap<&Nqn, Option<Span>> = HashMap::new();
        for host in list {
            if let Some(first) = seen.insert(&host.value, host.span) {
                let draft = Draft::warning(format!("the host `{}` is listed twice", host.value));
                self.sink.push(
                    draft
                        .at(host.span, "again here")
                        .and_at(first, "first here"),
                );
            }
        }
        Access::Hosts(seen_in_order(list))
    }

    fn listeners_of(&mut self, raw: &RawSubsystem) -> Option<Vec<ListenerId>> {
        let Field::Given(names) = &raw.listeners else {
            let all = self.raw.listeners.iter().enumerate();
            let all = all.filter(|(_, listener)| listener.subsystems.value);
            let all: Vec<ListenerId> = all.map(|(at, _)| ListenerId(at)).collect();
            if all.is_empty() && !self.raw.listeners.is_empty() {
                let draft = Draft::error("no listener serves this subsystem");
                let draft = draft
                    .at(raw.span, "every listener says `subsystems = false`")
                    .by_absence();
                self.sink
                    .push(draft.help("add a [[listener]] for it: 4420 is the usual port"));
            }
            return (!all.is_empty()).then_some(all);
        };
        if names.value.is_empty() {
            let draft = Draft::error("a subsystem without a listener cannot be reached");
            let draft = draft.at(names.span, "expected names of listeners");
            self.sink
                .push(draft.help("leave `listeners` out to serve it on all of them"));
        }
        let mut ids = BTreeSet::new();
        for name in &names.value {
            let Some(at) = self.listeners.get(name.value.as_str()).copied() else {
                self.unknown_listener(name);
                continue;
            };
            let listener = &self.raw.listeners[at];
            if !listener.subsystems.value {
                let draft = Draft::error(format!(
                    "the listener `{}` serves no subsystems",
                    name.value
                ));
                self.sink.push(
                    draft
                        .at(name.span, "")
                        .and_at(listener.subsystems.span, "as it says here"),
                );
            }
            ids.insert(ListenerId(at));
        }
        Some(ids.into_iter().collect())
    }

    fn unknown_listener(&mut self, name: &At<String>) {
        let draft = Draft::error(format!(
            "there is no listener named {}",
            quoted(&name.value)
        ));
        let help = unknown_help(
            &name.value,
            self.listeners.keys().copied(),
            "listener",
            self.sink,
        );
        let draft = draft
            .at(name.span, "not a name of a [[listener]]")
            .help(help);
        if !self.listeners_unnamed {
            self.sink.push(draft.by_absence());
        }
    }

    fn namespaces(&mut self, raw: &RawSubsystem) -> Option<Vec<Namespace>> {
        let nsids = self.nsids(raw);
        // What volumes are exported, their pools know.
        if raw.namespaces.is_empty() && self.raw.pools.is_empty() {
            let draft = Draft::warning("this subsystem has no namespace: hosts will see no disk");
            let help = "add:\n[[subsystem.namespace]]\ndisk = \"...\"";
            self.sink.push(
                draft
                    .at(raw.span, "no [[subsystem.namespace]] follows")
                    .help(help)
                    .by_absence(),
            );
        }
        let name = raw
            .nqn
            .value()
            .map_or_else(|| "a subsystem".to_owned(), |nqn| format!("`{nqn}`"));
        let mut namespaces = Vec::new();
        let mut all_right = true;
        for (namespace, nsid) in raw.namespaces.iter().zip(&nsids) {
            match self.namespace(namespace, *nsid, &name) {
                Some(namespace) => namespaces.push(namespace),
                None => all_right = false,
            }
        }
        namespaces.sort_by_key(|namespace| namespace.nsid);
        all_right.then_some(namespaces)
    }

    /// The NSID of each namespace: its own, or the lowest that nobody has. `None`: none is right.
    fn nsids(&mut self, raw: &RawSubsystem) -> Vec<Option<u32>> {
        let max = raw.max_namespaces.value;
        let mut taken: HashMap<u32, Option<Span>> = HashMap::new();
        for nsid in raw
            .namespaces
            .iter()
            .filter_map(|namespace| namespace.nsid.given())
        {
            if nsid.value > max {
                let draft = Draft::error(format!("NSID {} is above `max_namespaces`", nsid.value));
                let draft = draft.at(nsid.span, format!("expected 1 to {max}"));
                self.sink
                    .push(draft.and_at(raw.max_namespaces.span, "the bound"));
            }
            if let Some(first) = taken.get(&nsid.value) {
                let draft =
                    Draft::error(format!("there are two namespaces with NSID {}", nsid.value));
                let draft = draft
                    .at(nsid.span, "again here")
                    .and_at(*first, "first here");
                self.sink
                    .push(draft.help("leave `nsid` out to take the next that is free"));
            } else {
                taken.insert(nsid.value, nsid.span);
            }
        }
        let mut free = (1..=max).filter(|nsid| !taken.contains_key(nsid));
        let mut nsids = Vec::new();
        for namespace in &raw.namespaces {
            nsids.push(match &namespace.nsid {
                Field::Given(nsid) => Some(nsid.value),
                Field::Wrong => None,
                Field::Absent => free.next().or_else(|| {
                    let draft = Draft::error("no NSID is left for this namespace");
                    let draft = draft.at(namespace.span, format!("`max_namespaces` is {max}"));
                    self.sink
                        .push(draft.and_at(raw.max_namespaces.span, "the bound"));
                    None
                }),
            });
        }
        nsids
    }

    fn namespace(
        &mut self,
        raw: &RawNamespace,
        nsid: Option<u32>,
        subsystem: &str,
    ) -> Option<Namespace> {
        let store = match (raw.disk.given(), raw.volume.given()) {
            (Some(disk), Some(volume)) => {
                let draft = Draft::error("a namespace is a disk or a volume, not both");
                let draft = draft.at(volume.span, "the volume");
                self.sink.push(draft.and_at(disk.span, "the disk"));
                None
            }
            (Some(name), None) => self.store(name, nsid, subsystem),
            (None, Some(name)) => self.volume(name, nsid, subsystem),
            (None, None) => None,
        };
        let disk_uuid = match store {
            Some(Store::Disk(disk)) => self.raw.disks[disk.0].uuid.given(),
            _ => None,
        };
        let uuid = raw.uuid.given().or(disk_uuid);
        if let Some(uuid) = uuid {
            once(&mut self.uuids, uuid.value, uuid.span, "UUID", self.sink);
        }
        if let Some(nguid) = raw.nguid.given() {
            once(
                &mut self.nguids,
                nguid.value.0,
                nguid.span,
                "NGUID",
                self.sink,
            );
        }
        if let Some(eui64) = raw.eui64.given() {
            once(
                &mut self.eui64s,
                eui64.value.0,
                eui64.span,
                "EUI-64",
                self.sink,
            );
        }
        Some(Namespace {
            nsid: nsid?,
            store: store?,
            uuid: uuid.map(|uuid| uuid.value),
            nguid: raw.nguid.value().copied(),
            eui64: raw.eui64.value().copied(),
            read_only: raw.read_only,
        })
    }

    /// The disk or array of this name, which is exported from now on.
    fn store(&mut self, name: &At<String>, nsid: Option<u32>, subsystem: &str) -> Option<Store> {
        let Some(store) = self.stores.get(name.value.as_str()).copied() else {
            let draft = Draft::error(format!("there is no disk named {}", quoted(&name.value)));
            let help = unknown_help(&name.value, self.stores.keys().copied(), "disk", self.sink);
            let draft = draft
                .at(name.span, "not a name of a [[disk]] or an [[array]]")
                .help(help);
            if !self.stores_unnamed {
                self.sink.push(draft.by_absence());
            }
            return None;
        };
        let what = match nsid {
            Some(nsid) => format!("namespace {nsid} of {subsystem}"),
            None => format!("a namespace of {subsystem}"),
        };
        let kind = match store {
            Store::Disk(_) => "disk",
            Store::Array(_) => "array",
            Store::Volume(_) => "volume",
        };
        if let Some(owner) = self.owners.get(&store) {
            let message = format!(
                "the {kind} `{}` is {}, and cannot be {what} too",
                name.value, owner.what
            );
            let pool = owner.what.contains("pool");
            let (label, help) = match pool {
                true => ("beneath the pool here", "export a volume of the pool"),
                false => (
                    "in the array here",
                    "export the array: its hosts would overwrite each other's blocks",
                ),
            };
            let draft = Draft::error(message)
                .at(name.span, "exported here")
                .and_at(owner.span, label);
            self.sink.push(draft.help(help));
            return None;
        }
        self.export_once(store, name, kind, what)
    }

    /// The volume `pool/volume`, which is exported from now on.
    fn volume(&mut self, name: &At<String>, nsid: Option<u32>, subsystem: &str) -> Option<Store> {
        let mut pools = self.raw.pools.iter();
        let known = name.value.split_once('/').is_some_and(|(pool, volume)| {
            !volume.is_empty() && pools.any(|known| known.name.value().is_some_and(|k| k == pool))
        });
        if !known {
            if self
                .raw
                .pools
                .iter()
                .any(|pool| pool.name.value().is_none())
            {
                // It may be that one's.
                return None;
            }
            let message = format!("{} names no volume of a pool", quoted(&name.value));
            let draft = Draft::error(message).at(name.span, "expected \"pool/volume\"");
            let names = self.raw.pools.iter().filter_map(|pool| pool.name.value());
            let names: Vec<&str> = names.map(String::as_str).collect();
            self.sink.push(draft.help(match names.is_empty() {
                true => "there is no [[pool]]".to_owned(),
                false => format!("the pools are {}", listed(names)),
            }));
            return None;
        }
        let before = self
            .volumes
            .iter()
            .position(|known| known.name == name.value);
        let at = before.unwrap_or(self.volumes.len());
        if before.is_none() {
            self.volumes.push(NamedVolume {
                name: name.value.clone(),
            });
        }
        let what = match nsid {
            Some(nsid) => format!("namespace {nsid} of {subsystem}"),
            None => format!("a namespace of {subsystem}"),
        };
        self.export_once(Store::Volume(NamedVolumeId(at)), name, "volume", what)
    }

    fn export_once(
        &mut self,
        store: Store,
        name: &At<String>,
        kind: &str,
        what: String,
    ) -> Option<Store> {
        if let Some(first) = self.exported.get(&store) {
            let message = format!(
                "the {kind} `{}` is exported twice: by {} and by {what}",
                name.value, first.what
            );
            let draft = Draft::error(message)
                .at(name.span, "again here")
                .and_at(first.span, "first here");
            self.sink
                .push(draft.help("it is one namespace: its hosts would overwrite each other"));
            return None;
        }
        self.exported.insert(
            store,
            Exported {
                what,
                span: name.span,
            },
        );
        Some(store)
    }

    fn unused_disks(&mut self) {
        let mut unused = Vec::new();
        for (at, disk) in self.raw.disks.iter().enumerate() {
            let Some(name) = disk.name.given() else {
                continue;
            };
            let store = Store::Disk(DiskId(at));
            let second_of_its_name = self.stores.get(name.value.as_str()) != Some(&store);
            let used = self.exported.contains_key(&store) || self.owners.contains_key(&store);
            if !used && !second_of_its_name {
                unused.push(name);
            }
        }
        if let Some(first) = unused.first() {
            let message = match unused.len() {
                1 => format!("the disk `{}` is not exported", first.value),
                count => format!(
                    "{count} disks are not exported, `{}` the first",
                    first.value
                ),
            };
            let draft = Draft::warning(message)
                .at(first.span, "no namespace, array or pool names it")
                .help("export it, or make an array or a pool of it: corebay array create --help");
            self.sink.push(draft.by_absence());
        }
        for (at, array) in self.raw.arrays.iter().enumerate() {
            let store = Store::Array(ArrayId(at));
            if let Some(name) = array.name.given()
                && array.kept.is_none()
                && self.stores.get(name.value.as_str()) == Some(&store)
                && !self.exported.contains_key(&store)
                && !self.owners.contains_key(&store)
            {
                let draft = Draft::warning(format!("the array `{}` is not exported", name.value));
                let draft = draft.at(name.span, "no [[subsystem.namespace]] names it");
                self.sink.push(draft.by_absence());
            }
        }
    }
}

/// An identifier that has to be unique is used.
fn once<K: Hash + Eq>(
    seen: &mut HashMap<K, Option<Span>>,
    id: K,
    span: Option<Span>,
    what: &str,
    sink: &mut Sink,
) {
    if let Some(first) = seen.insert(id, span) {
        let draft = Draft::error(format!("two namespaces have the same {what}"));
        let draft = draft.at(span, "again here").and_at(first, "first here");
        sink.push(draft.help("hosts would take them for two paths to one disk"));
    }
}

/// The hosts without those listed again.
fn seen_in_order(list: &[At<Nqn>]) -> Vec<Nqn> {
    let mut seen = BTreeSet::new();
    list.iter()
        .filter(|host| seen.insert(&host.value))
        .map(|host| host.value.clone())
        .collect()
}
