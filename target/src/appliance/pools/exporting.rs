//! Orders that show volumes to hosts, and take them back.
//!
//! Invariants:
//! - What cannot be shown as wished is refused before anything is made or kept for it.
//! - Who may connect is said once: by the configuration, or by exports. A host that loses its way in has
//!   no other one when the order is done, or the order is refused.

use std::{collections::BTreeSet, rc::Rc};

use corebay_conf::Nqn;
use corebay_lvol::{Export, Identity, VolumeId, format::page::Kind};
use corebay_target::{limits::NAMESPACES_MAX, subsystem::Access};

use super::{
    describe::describe_volume,
    exports::{derived_serial, own_nqn},
    home::{Home, OpenPool},
    orders::{ExportAdd, ExportRemove, Wish},
    refusals::refusal,
    turns::{Promise, Promised},
    volumes::Outcome,
};
use crate::appliance::control::RpcError;

/// An export that is not kept yet; its namespace's number is promised to it.
pub struct Planned {
    export: Export,
    _promise: Promise,
}

impl Home {
    /// Exports a volume, where that is wished, and tells of it.
    pub async fn export_and_describe(
        &self,
        pool: &Rc<OpenPool>,
        id: VolumeId,
        wish: Option<&Wish>,
    ) -> Outcome {
        self.export_planned(pool, id, wish, None).await
    }

    /// The same, where it may have been planned before the volume was made.
    pub async fn export_planned(
        &self,
        pool: &Rc<OpenPool>,
        id: VolumeId,
        wish: Option<&Wish>,
        planned: Option<Planned>,
    ) -> Outcome {
        if let Some(wish) = wish {
            self.export(pool, id, wish, planned).await?;
        }
        let record = pool.pool.volume(id).map_err(refusal)?;
        Ok(describe_volume(pool, id, &record))
    }

    pub async fn add_export(&self, add: &ExportAdd) -> Outcome {
        let (pool, id, _) = self.volume(&add.volume)?;
        self.export_and_describe(&pool, id, Some(&add.export)).await
    }

    /// Exports a volume as wished, or admits more hosts where it is exported.
    async fn export(
        &self,
        pool: &Rc<OpenPool>,
        id: VolumeId,
        wish: &Wish,
        mut planned: Option<Planned>,
    ) -> Result<(), RpcError> {
        let record = pool.pool.volume(id).map_err(refusal)?;
        if record.receiving.is_some() {
            let name = &record.name;
            return Err(RpcError::refused(format!(
                "\"{name}\" is being received: `corebay volume show {name}` says how its stream goes on"
            )));
        }
        if !record.read_only && record.kind == Kind::Volume {
            self.refuse_imaged(id, pool)?;
        }
        let known = record.export.clone();
        let before = known.clone();
        let mut export = match known {
            Some(export) => {
                let other = wish
                    .subsystem
                    .as_ref()
                    .is_some_and(|s| *s != export.subsystem)
                    || wish.nsid.is_some_and(|nsid| nsid != export.nsid);
                if other {
                    return Err(RpcError::conflict(format!(
                        "the volume is exported as namespace {} of {}",
                        export.nsid, export.subsystem
                    )));
                }
                export
            }
            None if pool.attached.borrow().contains_key(&id) => {
                return Err(RpcError::conflict("the configuration exports the volume"));
            }
            None => {
                let plan = match planned.take() {
                    Some(planned) => planned,
                    None => self.new_export(record.uuid, wish)?,
                };
                // Its number is no other's until the pool keeps it.
                planned.insert(plan).export.clone()
            }
        };
        self.admit_wished(&mut export, wish)?;
        if before.as_ref() != Some(&export) {
            let kept = pool.pool.set_export(id, Some(&export)).await;
            kept.map_err(refusal)?;
        }
        let shown = self.show_to_hosts(pool, id, &export).await;
        if shown.is_err() && before.as_ref() != Some(&export) {
            // As if it had not been asked for.
            let undone = pool.pool.set_export(id, before.as_ref()).await;
            undone.map_err(refusal)?;
        }
        shown
    }

    async fn show_to_hosts(
        &self,
        pool: &Rc<OpenPool>,
        id: VolumeId,
        export: &Export,
    ) -> Result<(), RpcError> {
        let _showing = self.turns.of_showing().await;
        let subsystem = self.subsystem(export).await?;
        if pool.attached.borrow().contains_key(&id) {
            self.admit(&subsystem);
            return Ok(());
        }
        let attached = self.attach(pool, id, &subsystem, export.nsid, None).await;
        attached.map_err(RpcError::conflict)
    }

    /// Whether a volume that is about to be made can be exported as wished: what cannot be is refused
    /// before there is a volume.
    pub fn check_wish(
        &self,
        pool: &OpenPool,
        of: &Identity,
        wish: Option<&Wish>,
    ) -> Result<Option<Planned>, RpcError> {
        let Some(wish) = wish else {
            return Ok(None);
        };
        if self.is_named(&pool.pool.name(), &of.name) {
            return Err(RpcError::conflict(
                "the configuration exports the volume: make it without --export",
            ));
        }
        let planned = self.new_export(of.uuid, wish)?;
        self.admit_wished(&mut planned.export.clone(), wish)?;
        Ok(Some(planned))
    }

    fn admit_wished(&self, export: &mut Export, wish: &Wish) -> Result<(), RpcError> {
        export.allow_any_host |= wish.allow_any_host;
        for host in &wish.hosts {
            let _: Nqn = host
                .parse()
                .map_err(|error| RpcError::params(format!("the host \"{host}\": {error}")))?;
            if !export.hosts.contains(host) {
                export.hosts.push(host.clone());
            }
        }
        if export.encode().is_none() {
            return Err(RpcError::params(format!(
                "{} hosts are more than an export holds: export the volume in a subsystem of the \
                 configuration, which may have any number",
                export.hosts.len()
            )));
        }
        self.check_hosts(export, wish)
    }

    fn new_export(&self, uuid: [u8; 16], wish: &Wish) -> Result<Planned, RpcError> {
        let usual = self.usual.borrow().clone();
        let usual = usual.filter(|_| wish.hosts.is_empty() && !wish.allow_any_host);
        let nqn = match (&wish.subsystem, usual) {
            (Some(nqn), _) => nqn.clone(),
            (None, Some(usual)) => usual.names.nqn.to_string(),
            (None, None) => own_nqn(uuid),
        };
        let nqn: Nqn = nqn
            .parse()
            .map_err(|error| RpcError::params(format!("the subsystem \"{nqn}\": {error}")))?;
        if nqn.is_discovery() {
            return Err(RpcError::params(
                "that is the NQN of the discovery service, which has no namespaces",
            ));
        }
        let subsystem = self.core.registry.find(&nqn);
        let taken = self.taken_nsids(subsystem.as_ref(), &nqn);
        let nsid = nsid_of(&nqn, wish.nsid, &taken)?;
        let mut export = Export {
            serial: match &subsystem {
                Some(subsystem) => subsystem.names.serial.clone(),
                None => derived_serial(&nqn),
            },
            allow_any_host: false,
            hosts: Vec::new(),
            subsystem: nqn.to_string(),
            nsid,
        };
        // Whom the configuration admits comes along where the pool goes, as far as there is room.
        let configured = subsystem.filter(|known| !self.made.borrow().contains(&known.id));
        match configured.map(|known| known.access()) {
            Some(Access::Any) => export.allow_any_host = true,
            Some(Access::Hosts(hosts)) => {
                export.hosts = hosts.iter().map(ToString::to_string).collect();
                if export.encode().is_none() {
                    export.hosts.clear();
                }
            }
            None => {}
        }
        let number = Promised::Namespace(export.subsystem.clone(), nsid);
        let promise = self.turns.promise(number);
        let promise = promise.ok_or_else(|| RpcError::conflict("the namespace is taken"))?;
        Ok(Planned {
            export,
            _promise: promise,
        })
    }

    /// Who may connect is said once: by the configuration, or by exports.
    fn check_hosts(&self, export: &Export, wish: &Wish) -> Result<(), RpcError> {
        let says = !wish.hosts.is_empty() || wish.allow_any_host;
        match self.is_configured(export) {
            true if says => Err(RpcError::params(
                "the configuration says who may connect to that subsystem",
            )),
            false if !export.allow_any_host && export.hosts.is_empty() => Err(RpcError::params(
                "nobody could connect: name hosts (--host NQN), or say --allow-any-host",
            )),
            _ => Ok(()),
        }
    }

    pub async fn remove_export(&self, remove: &ExportRemove) -> Outcome {
        let (pool, id, record) = self.volume(&remove.volume)?;
        let Some(mut export) = record.export.clone() else {
            return match pool.attached.borrow().contains_key(&id) {
                true => Err(RpcError::refused("the configuration exports the volume")),
                false => Ok(describe_volume(&pool, id, &record)),
            };
        };
        if !remove.hosts.is_empty() {
            self.check_removal(&export)?;
        }
        let before = export.hosts.len();
        export.hosts.retain(|host| !remove.hosts.contains(host));
        if remove.hosts.is_empty() || (before > 0 && export.hosts.is_empty()) {
            self.detach(&pool, id).await;
            let kept = pool.pool.set_export(id, None).await;
            kept.map_err(refusal)?;
        } else if export.hosts.len() < before {
            let kept = pool.pool.set_export(id, Some(&export)).await;
            kept.map_err(refusal)?;
            let attached = pool.attached.borrow();
            let subsystem = attached.get(&id).map(|attached| attached.subsystem.clone());
            drop(attached);
            if let Some(subsystem) = subsystem {
                self.admit(&subsystem);
            }
        }
        self.export_and_describe(&pool, id, None).await
    }

    /// Single hosts are taken from an export only where it is what admits them.
    fn check_removal(&self, export: &Export) -> Result<(), RpcError> {
        if self.is_configured(export) {
            return Err(RpcError::params(
                "the configuration says who may connect to that subsystem: change it there",
            ));
        }
        if export.allow_any_host {
            return Err(RpcError::refused(
                "every host may connect: `corebay export remove` without --host takes the volume from \
                 all, `corebay export add --host` then shows it to those that may",
            ));
        }
        Ok(())
    }

    /// Whether the configuration describes the subsystem of an export.
    fn is_configured(&self, export: &Export) -> bool {
        let known = export.subsystem.parse().ok();
        let known = known.and_then(|nqn: Nqn| self.core.registry.find(&nqn));
        known.is_some_and(|known| !self.made.borrow().contains(&known.id))
    }
}

/// The number of a new namespace in a subsystem where these are taken.
fn nsid_of(nqn: &Nqn, wished: Option<u32>, taken: &BTreeSet<u32>) -> Result<u32, RpcError> {
    let all = 1..=NAMESPACES_MAX;
    match wished {
        Some(nsid) if taken.contains(&nsid) => Err(RpcError::conflict(format!(
            "{nqn} has another namespace {nsid}: leave --nsid away, and it gets a free one"
        ))),
        Some(nsid) if all.contains(&nsid) => Ok(nsid),
        Some(_) => Err(RpcError::params(format!("an NSID is 1 to {NAMESPACES_MAX}"))),
        None => all.clone().find(|nsid| !taken.contains(nsid)).ok_or_else(|| {
            RpcError::refused(format!(
                "{nqn} has {NAMESPACES_MAX} namespaces, which is all that it may have: name another subsystem \
                 (--subsystem NQN)"
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_gets_a_free_number_or_the_reason_why_not() {
        let nqn: Nqn = "nqn.2024-01.com.example:a".parse().unwrap();
        let some = BTreeSet::from([1, 2, 4]);
        assert_eq!(nsid_of(&nqn, None, &some).unwrap(), 3);
        assert_eq!(nsid_of(&nqn, Some(9), &some).unwrap(), 9);
        let all: BTreeSet<u32> = (1..=NAMESPACES_MAX).collect();
        for (wished, taken, why) in [
            (None, &all, "name another subsystem"),
            (Some(4), &some, "another namespace 4"),
            (Some(0), &some, "an NSID is 1 to 1024"),
            (Some(NAMESPACES_MAX + 1), &some, "an NSID is 1 to 1024"),
        ] {
            let refused = nsid_of(&nqn, wished, taken).unwrap_err();
            assert!(refused.message.contains(why), "{}", refused.message);
        }
    }
}
