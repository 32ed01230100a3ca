//! What the control socket's methods do. On the main thread.

use std::sync::{Arc, mpsc};

use corebay_conf::{Appliance, appliance::Store};
use corebay_core::units::Time;
use corebay_raid::{geometry::Consistency, state::RoleState};
use serde_json::{Value, json};

use super::{
    arrays::{ArrayMedium, Named, Order, Sweep, SweepKind},
    control::{Reply, RpcError},
    media::Media,
    state::State,
};

/// Does what a method says.
pub fn operate(
    appliance: &Appliance,
    media: &mut Media,
    state: &mut State,
    now: Time,
    (method, params): (&str, &Value),
) -> Reply {
    let method = method.to_owned();
    match method.as_str() {
        "status" => {
            let arrays: Vec<_> = media
                .arrays()
                .iter()
                .map(|array| describe(array, now))
                .collect();
            let seconds = now.0 / 1_000_000_000;
            let version = env!("CARGO_PKG_VERSION");
            Reply::Now(Ok(
                json!({ "version": version, "seconds": seconds, "arrays": arrays }),
            ))
        }
        "array.list" => {
            let arrays: Vec<_> = media
                .arrays()
                .iter()
                .map(|array| describe(array, now))
                .collect();
            Reply::Now(Ok(json!(arrays)))
        }
        "array.status" => Reply::Now(array(media, params).map(|array| describe(&array, now))),
        "array.scrub" | "array.fail" | "array.replace" => {
            let order = order(appliance, media, state, (&method, params));
            order.unwrap_or_else(|error| Reply::Now(Err(error)))
        }
        "drive.list" => Reply::Now(Ok(json!(media.drives().list()))),
        "drive.show" => match text(params, "drive") {
            Ok(address) => Reply::Later(media.drives().report(address)),
            Err(error) => Reply::Now(Err(error)),
        },
        "array.spare" => Reply::Now(spare(appliance, media, state, params)),
        other => Reply::Now(Err(RpcError {
            code: -32601,
            message: format!("there is no method {other}"),
        })),
    }
}

fn text<'p>(params: &'p Value, key: &str) -> Result<&'p str, RpcError> {
    let text = params.get(key).and_then(Value::as_str);
    text.ok_or_else(|| RpcError::params(format!("`{key}` is missing, or no text")))
}

fn array(media: &Media, params: &Value) -> Result<Arc<ArrayMedium>, RpcError> {
    let name = text(params, "array")?;
    let known = media.arrays().iter().find(|array| array.name == name);
    known
        .cloned()
        .ok_or_else(|| RpcError::params(format!("there is no array \"{name}\"")))
}

/// A role by its number or its disk.
fn role(array: &ArrayMedium, params: &Value) -> Result<usize, RpcError> {
    let member = text(params, "member")?;
    let roles = array.assembled.geometry().roles();
    if let Some(role) = member.parse::<usize>().ok().filter(|role| *role < roles) {
        return Ok(role);
    }
    let members = array.members();
    let is_it = |known: &Option<Named>| known.as_ref().is_some_and(|known| known.name == member);
    let found = members.iter().position(is_it);
    found.ok_or_else(|| {
        RpcError::params(format!(
            "\"{member}\" is no member: a role from 0 to {} or a disk is",
            roles - 1
        ))
    })
}

fn order(
    appliance: &Appliance,
    media: &mut Media,
    state: &mut State,
    (method, params): (&str, &Value),
) -> Result<Reply, RpcError> {
    let array = array(media, params)?;
    let order = match method {
        "array.scrub" => Order::Scrub,
        "array.fail" => {
            let role = role(&array, params)?;
            Order::Fail { role }
        }
        _ => {
            let role = role(&array, params)?;
            let by = free_disk(appliance, media, state, params)?;
            Order::Replace { role, by }
        }
    };
    let (answer, outcome) = mpsc::channel();
    array.order(order, answer);
    Ok(Reply::Order(outcome))
}

/// A disk that nobody uses.
fn free_disk(
    appliance: &Appliance,
    media: &mut Media,
    state: &mut State,
    params: &Value,
) -> Result<Named, RpcError> {
    let name = text(params, "disk")?;
    let exported = appliance
        .subsystems()
        .iter()
        .flat_map(|subsystem| &subsystem.namespaces)
        .any(|namespace| match namespace.store {
            Store::Disk(disk) => appliance.disk(disk).name == name,
            Store::Array(_) | Store::Volume(_) => false,
        });
    if exported {
        return Err(RpcError::refused(format!(
            "the disk \"{name}\" is exported"
        )));
    }
    if let Some(pool) = media.pools.on(name) {
        return Err(RpcError::refused(format!(
            "the disk \"{name}\" is beneath the pool \"{pool}\""
        )));
    }
    for array in media.arrays() {
        let members = array.members();
        let state = array.assembled.state();
        let active = members.iter().zip(&state.roles).any(|(member, record)| {
            record.state != RoleState::Failed
                && member.as_ref().is_some_and(|member| member.name == name)
        });
        if active {
            let message = format!(
                "the disk \"{name}\" is a member of the array \"{}\"",
                array.name
            );
            return Err(RpcError::refused(message));
        }
    }
    let medium = media.disk(appliance, name, state);
    let medium = medium.map_err(|failure| RpcError::refused(failure.to_string()))?;
    Ok(Named {
        name: name.to_owned(),
        medium,
    })
}

fn spare(
    appliance: &Appliance,
    media: &mut Media,
    state: &mut State,
    params: &Value,
) -> Result<Value, RpcError> {
    let array = array(media, params)?;
    let disk = free_disk(appliance, media, state, params)?;
    let mut others = media.arrays().iter();
    if others.any(|array| {
        array
            .tending()
            .spares
            .iter()
            .any(|spare| spare.name == disk.name)
    }) {
        return Err(RpcError::refused(format!(
            "the disk \"{}\" is a spare already",
            disk.name
        )));
    }
    array.tending().spares.push(disk);
    Ok(json!({}))
}

fn describe(array: &ArrayMedium, now: Time) -> Value {
    let (assembled, state) = (&array.assembled, array.assembled.state());
    let (geometry, info, counters) = (assembled.geometry(), assembled.info(), assembled.counters());
    let members = array.members().into_iter().zip(&state.roles).enumerate().map(|(role, (disk, record))| {
        let word = match record.state {
            RoleState::Active => "active",
            RoleState::Failed => "failed",
            RoleState::Rebuilding { .. } => "rebuilding",
        };
        json!({ "role": role, "disk": disk.map(|disk| disk.name), "uuid": record.member.to_string(), "state": word })
    });
    let members: Vec<_> = members.collect();
    let rebuilding = state
        .roles
        .iter()
        .any(|role| matches!(role.state, RoleState::Rebuilding { .. }));
    let word = match (assembled.is_stopped(), state.is_whole(), rebuilding) {
        (true, ..) => "stopped",
        (_, true, _) => "good",
        (.., true) => "rebuilding",
        _ => "degraded",
    };
    let tending = array.tending();
    let spares: Vec<_> = tending.spares.iter().map(|spare| &spare.name).collect();
    let refused = tending.refused.iter();
    let refused: Vec<_> = refused
        .map(|(disk, why)| json!({ "disk": disk.name, "why": why }))
        .collect();
    let scrubbed = tending.scrubbed.as_ref().map(|last| {
        let ago = now.since(last.at).as_secs();
        match &last.outcome {
            Ok(found) => json!({
                "seconds_ago": ago, "mismatches": found.mismatch_count,
                "mismatched_stripes": found.mismatches, "lost_stripes": found.lost,
            }),
            Err(why) => json!({ "seconds_ago": ago, "error": why }),
        }
    });
    json!({
        "name": array.name,
        "uuid": assembled.uuid().to_string(),
        "level": geometry.wish().level.to_string(),
        "state": word,
        "bytes": info.bytes(),
        "block_bytes": info.block_size.bytes(),
        "strip_bytes": geometry.strip_bytes(),
        "consistency": match geometry.wish().consistency {
            Consistency::Journal => "journal",
            Consistency::DirtyRegions => "resync",
        },
        "members": members,
        "spares": spares,
        "refused": refused,
        "sweep": tending.sweep.as_ref().map(|sweep| progress(array, sweep, now)),
        "scrubbed": scrubbed,
        "counters": {
            "reconstructed": counters.reconstructed, "repaired": counters.repaired,
            "failed_members": counters.failed_members, "mismatches": counters.mismatches,
        },
    })
}

fn progress(array: &ArrayMedium, sweep: &Sweep, now: Time) -> Value {
    let (done, total) = array.assembled.progress();
    let strip = u64::from(array.assembled.geometry().strip_bytes());
    let done = done.max(sweep.from);
    let millis = u64::try_from(now.since(sweep.since).as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let rate = (done - sweep.from)
        .saturating_mul(strip)
        .saturating_mul(1000)
        / millis;
    let left = (total - done.min(total)).saturating_mul(strip);
    let (kind, role) = match sweep.kind {
        SweepKind::Resync => ("resync", None),
        SweepKind::Rebuild(role) => ("rebuild", Some(role)),
        SweepKind::Scrub => ("scrub", None),
    };
    json!({
        "kind": kind,
        "role": role,
        "done_bytes": done * strip,
        "total_bytes": total * strip,
        "bytes_per_second": rate,
        "seconds_left": left.checked_div(rate),
    })
}
