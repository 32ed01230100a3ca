//! Pools, volumes and exports as the control socket tells of them.

use std::{cell::Cell, collections::BTreeMap, rc::Rc, time::Duration};

use corebay_lvol::{
    CheckReport, Rate, SpaceLevel, VolumeId, VolumeSpace,
    format::page::{Kind, VolumeRecord},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    KnownPool,
    home::{Home, OpenPool},
    volumes::Outcome,
};

/// Volumes that are told of before others get their turn.
const DESCRIBED_AT_ONCE: usize = 32;

/// How long it may take to find out what a volume takes of its pool.
const SPACE_WAIT: Duration = Duration::from_secs(2);

/// How often it is looked whether that is found out.
const PAUSE: Duration = Duration::from_millis(1);

impl Home {
    /// All pools, those that could not be opened too, or the one of this name.
    pub fn describe_pools(&self, of: Option<&str>) -> Vec<Value> {
        let open = self.pools.borrow();
        let mut all: Vec<Value> = open.iter().map(describe_pool).collect();
        let known = self.book.pools();
        all.extend(known.iter().filter_map(describe_problem));
        all.retain(|pool| of.is_none_or(|of| pool["name"] == of));
        all.sort_by_key(|pool| pool["name"].as_str().unwrap_or_default().to_owned());
        all
    }

    /// All volumes or snapshots, or those of one pool, by pool and name.
    pub async fn describe_volumes(&self, of: Option<&str>, kind: Kind) -> Vec<Value> {
        let is_wanted = |_: &Rc<OpenPool>, _: VolumeId, record: &VolumeRecord| record.kind == kind;
        self.describe_those(of, is_wanted).await
    }

    /// Those of all volumes and snapshots that are wanted. Some at a time: what hosts ask of this core does not
    /// wait for all of them.
    async fn describe_those(
        &self,
        of: Option<&str>,
        is_wanted: impl Fn(&Rc<OpenPool>, VolumeId, &VolumeRecord) -> bool,
    ) -> Vec<Value> {
        let pools = self.pools.borrow().clone();
        let mut all = BTreeMap::new();
        for pool in pools {
            let name = pool.pool.name();
            if of.is_some_and(|of| name != of) {
                continue;
            }
            let mut volumes = pool.pool.volumes();
            volumes.retain(|(id, record)| is_wanted(&pool, *id, record));
            for some in volumes.chunks(DESCRIBED_AT_ONCE) {
                for (id, _) in some {
                    // It may be gone by now, or be called otherwise.
                    if let Ok(record) = pool.pool.volume(*id) {
                        let told = describe_volume(&pool, *id, &record);
                        all.insert((name.clone(), record.name, *id), told);
                    }
                }
                self.core.reactor.sleep(Duration::ZERO).await;
            }
        }
        all.into_values().collect()
    }

    /// A volume or a snapshot, with what it takes of its pool where that is found out soon.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub async fn show_volume(&self, name: &str) -> Outcome {
        let (pool, id, record) = self.volume(name)?;
        let mut told = describe_volume(&pool, id, &record);
        let space = self.space_of(&pool, id).await;
        told["space"] = json!(space.map(|space| json!({
            "exclusive_bytes": space.exclusive,
            "shared_bytes": space.shared,
            "reserved_bytes": space.reserved,
        })));
        Ok(told)
    }

    /// What a volume takes of its pool. All of its map is read for that: by one task of a pool at a time,
    /// which may wait for a disk for as long as that needs.
    async fn space_of(&self, pool: &Rc<OpenPool>, id: VolumeId) -> Option<VolumeSpace> {
        let reactor = &self.core.reactor;
        let until = reactor.now().plus(SPACE_WAIT);
        while pool.is_measured.replace(true) {
            if reactor.now() >= until {
                return None;
            }
            reactor.sleep(PAUSE).await;
        }
        let found = Rc::new(Cell::new(None));
        let (of, into) = (pool.clone(), found.clone());
        self.core.spawn_control(async move {
            into.set(Some(of.pool.volume_space(id).await.ok()));
            of.is_measured.set(false);
        });
        while reactor.now() < until {
            if let Some(space) = found.take() {
                return space;
            }
            reactor.sleep(PAUSE).await;
        }
        None
    }

    /// All exports, or those of one pool.
    pub async fn describe_exports(&self, of: Option<&str>) -> Vec<Value> {
        let is_exported = |pool: &Rc<OpenPool>, id: VolumeId, record: &VolumeRecord| {
            record.kind != Kind::Dying
                && (record.export.is_some() || pool.attached.borrow().contains_key(&id))
        };
        let exported = self.describe_those(of, is_exported).await;
        exported
            .into_iter()
            .filter(|volume| !volume["export"].is_null())
            .map(|volume| {
                let mut export = volume["export"].clone();
                export["pool"] = volume["pool"].clone();
                export["volume"] = volume["name"].clone();
                export
            })
            .collect()
    }
}

/// A pool that could not be opened: as one that is open, as far as it is known.
fn describe_problem(known: &KnownPool) -> Option<Value> {
    let problem = known.problem.as_ref()?;
    Some(json!({
        "name": known.name,
        "uuid": null,
        "disk": known.on,
        "state": if known.is_opening { "opening" } else { "unavailable" },
        "problem": problem,
        "total_bytes": null,
        "used_bytes": null,
        "available_bytes": null,
        "reserved_bytes": null,
        "provisioned_bytes": null,
        "used_percent": null,
        "level": null,
        "warn_at": null,
        "critical_at": null,
        "block_size": null,
        "volumes": null,
        "snapshots": null,
        "deleting": null,
        "repairs": null,
        "journal": null,
        "journal_bytes": null,
        "metadata_bytes": null,
    }))
}

/// Why a pool has failed whose disk is away.
const LOST: &str = "its disk was lost; it is opened again by itself once that is there again";
const DAMAGED: &str =
    "its metadata are damaged: `corebay pool check POOL` says which blocks cannot be found";
pub const STOPPED: &str = "`corebay pool import POOL --disk DISK` opens it again once that works";

/// A pool that is open.
pub fn describe_pool(pool: &Rc<OpenPool>) -> Value {
    let status = pool.pool.status();
    let volumes = pool.pool.volumes();
    let count = |kind: Kind| {
        volumes
            .iter()
            .filter(|(_, record)| record.kind == kind)
            .count()
    };
    let thresholds = pool.pool.thresholds();
    json!({
        "name": pool.pool.name(),
        "uuid": Uuid::from_bytes(pool.pool.uuid()).to_string(),
        "disk": pool.on,
        "state": if status.failed { "failed" } else { "online" },
        "problem": match (pool.is_lost.get(), status.failed, status.lost_pages) {
            (true, ..) => Some(LOST),
            (false, true, _) => Some(STOPPED),
            (false, false, 0) => None,
            (false, false, _) => Some(DAMAGED),
        },
        "total_bytes": status.total_bytes,
        "used_bytes": status.total_bytes - status.free_bytes,
        "available_bytes": status.available_bytes,
        "reserved_bytes": status.reserved_bytes,
        "provisioned_bytes": status.provisioned_bytes,
        "used_percent": status.used_percent,
        "level": match status.level {
            SpaceLevel::Normal => "normal",
            SpaceLevel::Warning => "warning",
            SpaceLevel::Critical => "critical",
            SpaceLevel::Full => "full",
        },
        "warn_at": thresholds.warning_percent,
        "critical_at": thresholds.critical_percent,
        "block_size": pool.info.block_size.bytes(),
        "volumes": count(Kind::Volume),
        "snapshots": count(Kind::Snapshot),
        "deleting": count(Kind::Dying),
        "repairs": status.repairs,
        "journal": if status.journal_in_zone { "zone" } else { "disk" },
        "journal_bytes": status.journal_bytes,
        "metadata_bytes": status.metadata_bytes,
    })
}

/// A volume or a snapshot.
pub fn describe_volume(pool: &Rc<OpenPool>, id: VolumeId, record: &VolumeRecord) -> Value {
    let size = pool.info.block_size;
    let origin = pool.pool.origin_of(id);
    let origin = origin.and_then(|origin| pool.pool.volume(origin).ok());
    let rate = |rate: Rate| match rate.per_second {
        0 => Value::Null,
        per_second => json!({ "per_second": per_second, "burst": rate.burst }),
    };
    let limits = &record.limits;
    json!({
        "pool": pool.pool.name(),
        "name": record.name,
        "uuid": Uuid::from_bytes(record.uuid).to_string(),
        "kind": match record.kind {
            Kind::Volume => "volume",
            Kind::Snapshot => "snapshot",
            Kind::Dying => "deleting",
        },
        "bytes": size.bytes_of(record.blocks),
        "used_bytes": size.bytes_of(record.mapped),
        "block_size": size.bytes(),
        "thick": record.thick,
        "read_only": record.read_only || record.kind == Kind::Snapshot,
        "origin": origin.map(|origin| origin.name),
        "limits": {
            "read_operations": rate(limits.read_operations),
            "read_bytes": rate(limits.read_bytes),
            "write_operations": rate(limits.write_operations),
            "write_bytes": rate(limits.write_bytes),
        },
        "receiving_from_block": record.receiving.as_ref().map(|receiving| receiving.next()),
        "export": describe_export(pool, id, record),
    })
}

fn describe_export(pool: &OpenPool, id: VolumeId, record: &VolumeRecord) -> Value {
    let attached = pool.attached.borrow();
    let attached = attached.get(&id);
    let shown = attached.map(|attached| (attached.subsystem.names.nqn.to_string(), attached.nsid));
    match (record.export.clone(), shown) {
        (Some(export), shown) => json!({
            "subsystem": export.subsystem,
            "nsid": export.nsid,
            "allow_any_host": export.allow_any_host,
            "hosts": export.hosts,
            "kept_by": "pool",
            "shown": shown == Some((export.subsystem, export.nsid)),
        }),
        (None, Some((subsystem, nsid))) => json!({
            "subsystem": subsystem, "nsid": nsid, "kept_by": "configuration", "shown": true,
        }),
        (None, None) => Value::Null,
    }
}

/// What a check has found.
pub fn describe_check(report: &CheckReport) -> Value {
    json!({
        "good": report.problems.is_empty(),
        "problems": report.problems,
        "more_problems": report.more,
        "volumes": report.volumes,
        "pages": report.pages,
        "extents": report.extents,
        "damaged_copies": report.damaged_copies,
    })
}
