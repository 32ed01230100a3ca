//! What the control socket's methods do. On the main thread.

use std::sync::{Arc, PoisonError, atomic::Ordering, mpsc};

use corebay_conf::{Appliance, appliance::Store};
use corebay_core::units::Time;
use corebay_raid::{
    array::Assembled,
    geometry::Consistency,
    state::{RoleRecord, RoleState},
};
use serde_json::{Value, json};

use super::{
    arrays::{ArrayMedium, Named, Order, Sweep, SweepKind},
    control::{Reply, RpcError},
    kept::{Made, unix_seconds},
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
            let arrays = media.arrays().iter().map(|array| describe(array, now));
            let absent = media.absent().iter().map(
                |(name, why)| json!({ "name": name, "state": "absent", "trouble": why, "sweep": null }),
            );
            Reply::Now(Ok(Value::Array(arrays.chain(absent).collect())))
        }
        "array.status" => Reply::Now(array(media, params).map(|array| describe(&array, now))),
        "array.scrub" | "array.fail" | "array.replace" | "array.add" | "array.remove"
        | "array.grow" => {
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

pub fn text<'p>(params: &'p Value, key: &str) -> Result<&'p str, RpcError> {
    let text = params.get(key).and_then(Value::as_str);
    text.ok_or_else(|| RpcError::params(format!("`{key}` is missing, or no text")))
}

/// A list of names; none where the key is absent.
pub fn names(params: &Value, key: &str) -> Result<Vec<String>, RpcError> {
    let Some(list) = params.get(key).filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let wrong = || RpcError::params(format!("`{key}` is no list of names"));
    let list = list.as_array().ok_or_else(wrong)?;
    let name = |name: &Value| name.as_str().map(str::to_owned).ok_or_else(wrong);
    list.iter().map(name).collect()
}

/// The array that is named.
pub fn array(media: &Media, params: &Value) -> Result<Arc<ArrayMedium>, RpcError> {
    let name = text(params, "array")?;
    let known = media.arrays().iter().find(|array| array.name == name);
    known
        .cloned()
        .ok_or_else(|| RpcError::params(format!("there is no array \"{name}\"")))
}

/// A role by its number or its disk.
fn role(array: &ArrayMedium, params: &Value) -> Result<usize, RpcError> {
    let member = text(params, "member")?;
    let roles = array.assembled().geometry().roles();
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
        "array.grow" => Order::Grow,
        "array.fail" => {
            let role = role(&array, params)?;
            Order::Fail { role }
        }
        "array.remove" => {
            let mut tending = array.tending();
            let member = text(params, "member")?;
            if let Some(place) = tending.spares.iter().position(|s| s.name == member) {
                tending.spares.remove(place);
                drop(tending);
                return kept_as_it_is(&array, state).map(Reply::Now);
            }
            drop(tending);
            let role = role(&array, params)?;
            Order::Remove { role }
        }
        "array.add" => {
            let (by, lose) = new_member(appliance, media, state, params)?;
            Order::Add { by, lose }
        }
        _ => {
            let role = role(&array, params)?;
            let (by, lose) = new_member(appliance, media, state, params)?;
            Order::Replace { role, by, lose }
        }
    };
    let (answer, outcome) = mpsc::channel();
    array.order(order, answer);
    Ok(Reply::Order(outcome))
}

/// What has changed of an array that was made while the appliance ran is kept.
fn kept_as_it_is(
    array: &Arc<ArrayMedium>,
    state: &mut State,
) -> Result<Result<Value, RpcError>, RpcError> {
    if array.kept.load(Ordering::SeqCst) {
        state.keep_array(&array.name, Made::of(array));
    }
    let saved = state.save().map(|()| json!({}));
    Ok(saved.map_err(|failure| RpcError::refused(failure.to_string())))
}

/// A disk that nobody uses, and whether what it holds may be lost.
fn new_member(
    appliance: &Appliance,
    media: &mut Media,
    state: &mut State,
    params: &Value,
) -> Result<(Named, bool), RpcError> {
    let (name, lose) = (text(params, "disk")?, names(params, "lose")?);
    if let Some(other) = lose.iter().find(|other| *other != name) {
        let message = format!("\"{other}\" is to be lost, and only \"{name}\" would be");
        return Err(RpcError::params(message));
    }
    let disk = free(appliance, media, state, name)?;
    Ok((disk, !lose.is_empty()))
}

/// A disk that nobody uses.
pub fn free(
    appliance: &Appliance,
    media: &mut Media,
    state: &mut State,
    name: &str,
) -> Result<Named, RpcError> {
    if media.claimed().contains(name) {
        let message = format!("an array is being made of the disk \"{name}\"");
        return Err(RpcError::refused(message));
    }
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
        if let Some(role) = array.still_asked(name) {
            return Err(RpcError::refused(format!(
                "the disk \"{name}\" has not ended what the array \"{}\" asked of it as role {role} \
                 before it was given up: what came late would spoil newer data",
                array.name
            )));
        }
        let members = array.members();
        let state = array.assembled().state();
        let is_spare = |spare: &Named| spare.name == name;
        if array.tending().spares.iter().any(is_spare) {
            let message = format!(
                "the disk \"{name}\" is a spare of the array \"{}\"",
                array.name
            );
            return Err(RpcError::refused(message));
        }
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
    if !appliance.disks().iter().any(|disk| disk.name == name) {
        return Err(RpcError::params(format!(
            "there is no disk named \"{name}\": add a [[disk]] of this name to the configuration, and \
             reload it (SIGHUP)"
        )));
    }
    let medium = media.disk(appliance, name, state);
    let medium = medium.map_err(|failure| RpcError::unavailable(failure.to_string()))?;
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
    let name = text(params, "disk")?;
    let disk = free(appliance, media, state, name)?;
    let geometry = array.assembled().geometry();
    let (info, needs) = (disk.medium.info(), geometry.member_bytes());
    if info.block_size != geometry.block_size() || info.bytes() < needs {
        return Err(RpcError::refused(format!(
            "the disk \"{name}\" has {} bytes in blocks of {}, a member needs {needs} in blocks of {}",
            info.bytes(),
            info.block_size,
            geometry.block_size()
        )));
    }
    let mut tending = array.tending();
    tending.forget(name);
    tending.spares.push(disk);
    drop(tending);
    let done = kept_as_it_is(&array, state)??;
    Ok(match array.kept.load(Ordering::SeqCst) {
        true => done,
        false => json!({ "note": format!(
            "the next start does not know it: name \"{name}\" in `spares` of [[array]] \"{}\", too",
            array.name
        ) }),
    })
}

fn describe(array: &ArrayMedium, now: Time) -> Value {
    let assembled = array.assembled();
    let state = assembled.state();
    let (geometry, info, counters) = (assembled.geometry(), assembled.info(), assembled.counters());
    let rebuilding = state
        .roles
        .iter()
        .any(|role| matches!(role.state, RoleState::Rebuilding { .. }));
    let ending = array.ending.load(Ordering::SeqCst);
    let is_stopped = assembled.is_stopped() || assembled.lost().next().is_some();
    let word = match (is_stopped, state.is_whole(), rebuilding) {
        _ if ending => "stopping",
        (true, ..) => "stopped",
        (_, true, _) => "good",
        (.., true) => "rebuilding",
        _ => "degraded",
    };
    let members = describe_members(array);
    let tending = array.tending();
    let spares: Vec<_> = tending.spares.iter().map(|spare| &spare.name).collect();
    let refused = tending.refused.iter();
    let refused: Vec<_> = refused
        .map(|(disk, why)| json!({ "disk": disk.name, "why": why }))
        .collect();
    let scrubbed = tending.scrubbed.as_ref().map(|last| {
        let ago = unix_seconds().saturating_sub(last.at_unix);
        let seconds = last.seconds;
        match &last.outcome {
            Ok(found) => json!({
                "seconds_ago": ago, "seconds": seconds, "mismatches": found.mismatch_count,
                "mismatched_stripes": found.mismatches, "lost_stripes": found.lost,
            }),
            Err(why) => json!({ "seconds_ago": ago, "seconds": seconds, "error": why }),
        }
    });
    let next = array.scrub_every.map(|every| {
        let due = array.scrubbed_at.load(Ordering::Relaxed) + every.as_secs();
        due.saturating_sub(unix_seconds())
    });
    let trouble = array.trouble.lock();
    let trouble = trouble.unwrap_or_else(PoisonError::into_inner).clone();
    let trouble = trouble.or_else(|| is_stopped.then(|| STOPPED.to_owned()));
    let lost = lost_stripes(&assembled);
    let trouble = trouble.or_else(|| lost.first().map(|(first, _)| first.clone()));
    let lost: Vec<_> = lost.into_iter().map(|(_, stripe)| stripe).collect();
    json!({
        "name": array.name,
        "uuid": assembled.uuid().to_string(),
        "level": geometry.wish().level.to_string(),
        "state": word,
        "bytes": info.bytes(),
        "block_bytes": info.block_size.bytes(),
        "strip_bytes": geometry.strip_bytes(),
        "zone_bytes": geometry.zone_bytes(),
        "consistency": match geometry.wish().consistency {
            Consistency::Journal => "journal",
            Consistency::DirtyRegions => "resync",
        },
        "members": members,
        "spares": spares,
        "refused": refused,
        "sweep": tending.sweep.as_ref().map(|sweep| progress(array, sweep, now)),
        "resync_due": assembled.needs_resync(),
        "lost_stripes": lost,
        "scrubbed": scrubbed,
        "scrub_every_seconds": array.scrub_every.map(|every| every.as_secs()),
        "scrub_in_seconds": next,
        "trouble": trouble,
        "configured": !array.kept.load(Ordering::SeqCst),
        "counters": {
            "reconstructed": counters.reconstructed, "repaired": counters.repaired,
            "failed_members": counters.failed_members, "mismatches": counters.mismatches,
            "slow_members": counters.slow_members,
        },
    })
}

/// What to do where an array has too few members to be assembled.
pub const TOO_FEW: &str = "connect those that are missing; if they are lost, `corebay array assemble NAME \
    DISK... --lose NAME` takes stale ones and loses what was written without them: on an appliance whose \
    configuration does not name the array, as it does not start without it";

/// Why an array takes nothing more, and what mends it.
const STOPPED: &str =
    "it has lost more members than it bears; once they are there again, restart corebay";

/// The stripes that keep a rebuild from ending, each with what there is to say about it.
fn lost_stripes(assembled: &Assembled) -> Vec<(String, Value)> {
    let (geometry, lost) = (assembled.geometry(), assembled.lost_stripes());
    let blocks = geometry.block_size().blocks_in(geometry.stripe_bytes());
    let (count, each) = (lost.len(), lost.into_iter());
    each.map(|(role, stripe)| {
        let first = stripe * blocks;
        let last = first + blocks - 1;
        let said = format!(
            "some of blocks {first} to {last} cannot be read on as many members as role {role} needs to be \
             rebuilt ({count} such stripes); write or deallocate all of these blocks, and the rebuild ends"
        );
        (said, json!({ "role": role, "stripe": stripe, "first_block": first, "blocks": blocks }))
    })
    .collect()
}

/// The members, and how they answer.
fn describe_members(array: &ArrayMedium) -> Vec<Value> {
    let assembled = array.assembled();
    let (slow, lost): (Vec<usize>, Vec<usize>) =
        (assembled.slow().collect(), assembled.lost().collect());
    let roles = assembled.state().roles;
    let members = array.members().into_iter().zip(roles).enumerate();
    let member = |(role, (disk, record)): (usize, (Option<Named>, RoleRecord))| {
        let word = match record.state {
            RoleState::Active if lost.contains(&role) => "failed",
            RoleState::Active => "active",
            RoleState::Failed => "failed",
            RoleState::Rebuilding { .. } => "rebuilding",
        };
        let latency = assembled.latency(role);
        let latency = latency.map(|mean| u64::try_from(mean.as_micros()).unwrap_or(u64::MAX));
        json!({
            "role": role,
            "disk": disk.map(|disk| disk.name),
            "uuid": record.member.to_string(),
            "state": word,
            "latency_us": latency,
            "slow": slow.contains(&role),
            "overdue": assembled.overdue(role),
            "unended": assembled.strays(role),
        })
    };
    members.map(member).collect()
}

fn progress(array: &ArrayMedium, sweep: &Sweep, now: Time) -> Value {
    let assembled = array.assembled();
    let (done, total) = assembled.progress();
    let strip = u64::from(assembled.geometry().strip_bytes());
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
        SweepKind::Grow => ("grow", None),
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
