//! Pools: their names, and the disk or array that each lies on.

use std::collections::HashMap;

use super::stores::{Owner, Owners, stores, unknown_help};
use crate::appliance::{DiskId, Pool, Store};
use crate::diagnostic::{Draft, Sink, Span};
use crate::reader::At;
use crate::schema::{RawAppliance, RawKind, RawPool};
use crate::units::quoted;

/// The pools; what they lie on is theirs from now on.
pub(super) fn check(raw: &RawAppliance, owners: &mut Owners, sink: &mut Sink) -> Option<Vec<Pool>> {
    names(raw, sink);
    let stores = stores(raw);
    let pools = raw.pools.iter();
    let pools: Vec<_> = pools
        .map(|pool| check_one(raw, pool, &stores, owners, sink))
        .collect();
    pools.into_iter().collect()
}

fn names(raw: &RawAppliance, sink: &mut Sink) {
    let mut seen: HashMap<&str, Option<Span>> = HashMap::new();
    for name in raw.pools.iter().filter_map(|pool| pool.name.given()) {
        if let Some(first) = seen.insert(&name.value, name.span) {
            let message = format!("there are two pools named `{}`", name.value);
            let draft = Draft::error(message).at(name.span, "again here");
            sink.push(draft.and_at(first, "first here"));
        }
    }
}

fn check_one(
    raw: &RawAppliance,
    pool: &RawPool,
    stores: &HashMap<&str, Store>,
    owners: &mut Owners,
    sink: &mut Sink,
) -> Option<Pool> {
    let store = pool.disk.given();
    let store = store.and_then(|name| take(raw, pool, name, stores, owners, sink));
    let (warn_at, critical_at) = (pool.warn_at.given(), pool.critical_at.given());
    if let (Some(warn), Some(critical)) = (warn_at, critical_at)
        && critical.value < warn.value
    {
        let draft = Draft::error("`critical_at` is below `warn_at`");
        let label = format!("expected {} to 100", warn.value);
        sink.push(
            draft
                .at(critical.span, label)
                .and_at(warn.span, "the warning"),
        );
    }
    Some(Pool {
        name: pool.name.value()?.clone(),
        store: store?,
        create: pool.create,
        warn_at: warn_at.map(|percent| percent.value),
        critical_at: critical_at.map(|percent| percent.value),
        first_volume: pool.first_volume.clone(),
    })
}

fn take(
    raw: &RawAppliance,
    pool: &RawPool,
    name: &At<String>,
    stores: &HashMap<&str, Store>,
    owners: &mut Owners,
    sink: &mut Sink,
) -> Option<Store> {
    let Some(store) = stores.get(name.value.as_str()).copied() else {
        let draft = Draft::error(format!("there is no disk named {}", quoted(&name.value)));
        let help = unknown_help(&name.value, stores.keys().copied(), "disk", sink);
        let draft = draft
            .at(name.span, "not a name of a [[disk]] or an [[array]]")
            .help(help);
        sink.push(draft.by_absence());
        return None;
    };
    let own = pool.name.value().map_or("", String::as_str);
    if let Some(first) = owners.get(&store) {
        let message = format!(
            "`{}` is used twice: as {} and beneath the pool `{own}`",
            name.value, first.what
        );
        let draft = Draft::error(message).at(name.span, "again here");
        sink.push(draft.and_at(first.span, "first here"));
        return None;
    }
    if let Store::Disk(DiskId(at)) = store
        && matches!(raw.disks[at].kind, Some(RawKind::Null { .. }))
    {
        let draft = Draft::error(format!("the disk `{}` keeps nothing", name.value));
        let draft = draft.at(name.span, "a pool cannot lie on a `null` disk");
        sink.push(draft.help("take `ram` or `file`"));
        return None;
    }
    owners.insert(
        store,
        Owner {
            what: format!("the store of the pool `{own}`"),
            span: name.span,
        },
    );
    Some(store)
}
