//! What the control socket's methods do. On the main thread.

use std::sync::{Arc, PoisonError, atomic::Ordering, mpsc};

use corebay_conf::{Appliance, appliance::Store};
use corebay_core::units::Time;
use corebay_raid::{
    SlowMembers,
    array::Assembled,
    state::{RoleRecord, RoleState},
};
use serde_json::{Value, json};

use super::{
    arrays::{ArrayMedium, LastScrub, Named, Order, Scrubbing, Sweep, SweepKind},
    control::{Reply, RpcError},
    kept::{KeptScrub, Made, unix_seconds},
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
            let absent = media.absent().iter().map(describe_absent);
            let making = media.making.iter().map(|making| making.describe());
            let all = arrays.chain(absent).chain(making);
            Reply::Now(Ok(Value::Array(all.collect())))
        }
        "array.status" => {
            let name = params.get("array").and_then(Value::as_str);
            let mut making = media.making.iter();
            let making = making.find(|making| Some(&making.name[..]) == name);
            let absent = media.absent().iter();
            let mut absent = absent.filter(|(absent, _)| Some(&absent[..]) == name);
            Reply::Now(match (making, absent.next()) {
                (Some(making), _) => Ok(making.describe()),
                (None, Some(absent)) => Ok(describe_absent(absent)),
                _ => array(media, params).map(|array| describe(&array, now)),
            })
        }
        "array.scrub" => Reply::Now(scrub(media, state, params)),
        "array.fail" | "array.replace" | "array.add" | "array.remove" | "array.grow"
        | "array.spare" => {
            let order = order(appliance, media, state, (&method, params));
            order.unwrap_or_else(|error| Reply::Now(Err(error)))
        }
        "drive.list" => Reply::Now(Ok(json!(media.drives().list()))),
        "drive.show" => match text(params, "drive") {
            Ok(address) => Reply::Later(media.drives().report(address)),
            Err(error) => Reply::Now(Err(error)),
        },
        other => Reply::Now(Err(RpcError {
            code: -32601,
            message: format!("there is no method {other}"),
        })),
    }
}

/// An array that could not be assembled.
fn describe_absent((name, why): &(String, String)) -> Value {
    json!({ "name": name, "state": "absent", "trouble": why, "sweep": null })
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
        "array.grow" => Order::Grow,
        "array.fail" => {
            let role = role(&array, params)?;
            Order::Fail { role }
        }
        "array.remove" => {
            let mut tending = array.tending();
            let member = text(params, "member")?;
            if let Some(place) = tending.spares.iter().position(|s| s.name == member) {
                let spare = tending.spares.remove(place);
                tending.does_without(spare.name);
                drop(tending);
                return kept_as_it_is(&array, state).map(Reply::Now);
            }
            let is_away = tending.done_without.iter().any(|name| name == member);
            drop(tending);
            match role(&array, params) {
                Ok(role) => {
                    let had = array.members().get(role).cloned().flatten();
                    let disk = had.map(|had| had.name);
                    Order::Remove { role, disk }
                }
                // The same order again has been carried out already.
                Err(_) if is_away => return Ok(Reply::Now(Ok(json!({})))),
                Err(error) => return Err(error),
            }
        }
        "array.add" | "array.replace" if has_taken(&array, params)? => {
            return Ok(Reply::Now(Ok(json!({}))));
        }
        "array.add" => {
            let (by, lose) = new_member(appliance, media, state, params)?;
            Order::Add { by, lose }
        }
        "array.spare" => {
            let name = text(params, "disk")?;
            if array
                .tending()
                .spares
                .iter()
                .any(|spare| spare.name == name)
            {
                // The same order again: it is what is asked for.
                return kept_as_it_is(&array, state).map(Reply::Now);
            }
            let (by, lose) = new_member(appliance, media, state, params)?;
            Order::Spare { by, lose }
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

/// The same order to take a disk has been carried out already: it has that role, or any where none was named.
/// Who had it before is the array's no more.
fn has_taken(array: &ArrayMedium, params: &Value) -> Result<bool, RpcError> {
    let disk = text(params, "disk")?;
    let (members, state) = (array.members(), array.assembled().state());
    let is_it = |known: &Option<Named>| known.as_ref().is_some_and(|known| known.name == disk);
    let Some(has) = members.iter().position(is_it) else {
        return Ok(false);
    };
    let is_good = state
        .roles
        .get(has)
        .is_some_and(|r| r.state != RoleState::Failed);
    let is_asked = match params.get("member") {
        None => true,
        Some(_) => match role(array, params) {
            Ok(role) => role == has && text(params, "member")? != disk,
            Err(_) => {
                let member = text(params, "member")?;
                array
                    .tending()
                    .done_without
                    .iter()
                    .any(|name| name == member)
            }
        },
    };
    Ok(is_good && is_asked)
}

/// A scrub is to begin, or the one under way is to end.
fn scrub(media: &Media, state: &mut State, params: &Value) -> Result<Value, RpcError> {
    let array = array(media, params)?;
    let stops = match params.get("stop").filter(|value| !value.is_null()) {
        None => false,
        Some(value) => value
            .as_bool()
            .ok_or_else(|| RpcError::params("`stop` is neither true nor false"))?,
    };
    if array.ending.load(Ordering::SeqCst) {
        let message = format!("the array \"{}\" is being stopped", array.name);
        return Err(RpcError::refused(message));
    }
    let mut tending = array.tending();
    if stops && tending.scrubbing.take().is_none() {
        let message = format!("no scrub of the array \"{}\" is under way", array.name);
        return Err(RpcError::refused(message));
    }
    if stops {
        // The next one by itself is as far off as after one that has come to its end.
        array.scrubbed_at.store(unix_seconds(), Ordering::Relaxed);
    } else {
        tending.scrubbing.get_or_insert_default();
    }
    drop(tending);
    let assembled = array.assembled();
    state.keep_scrub(assembled.uuid(), KeptScrub::of(&array));
    let saved = state.save();
    saved.map_err(|failure| RpcError::refused(failure.to_string()))?;
    let waits = !assembled.state().is_whole() || assembled.needs_resync();
    Ok(match waits && !stops {
        true => json!({ "note": "it begins once all members are good" }),
        false => json!({}),
    })
}

/// What has changed of an array that was made while the appliance ran is kept.
fn kept_as_it_is(
    array: &Arc<ArrayMedium>,
    state: &mut State,
) -> Result<Result<Value, RpcError>, RpcError> {
    if array.kept.load(Ordering::SeqCst) {
        state.keep_array(&array.name, Made::of(array));
    } else {
        state.note_array_spares(&array.name, array.spares());
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
    if media.is_kept_from_use(name) {
        return Err(RpcError::refused(format!(
            "the disk \"{name}\" has not ended what was asked of it by an array that was stopped or does \
             without it: it is used again once it has, or once corebay was restarted"
        )));
    }
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
        if array.tending().blanking.iter().any(|known| known == name) {
            let message = format!("the disk \"{name}\" has not ended its being blanked");
            return Err(RpcError::refused(message));
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
    let scrubbed = tending.scrubbed.as_ref().map(describe_scrub);
    let next = array.scrub_every.map(|every| {
        let due = array.scrubbed_at.load(Ordering::Relaxed) + every.as_secs();
        due.saturating_sub(unix_seconds())
    });
    let trouble = array.trouble.lock();
    let trouble = trouble.unwrap_or_else(PoisonError::into_inner).clone();
    let trouble = trouble.or_else(|| is_stopped.then(|| STOPPED.to_owned()));
    let lost = lost_stripes(&assembled);
    let trouble = trouble.or_else(|| lost.first().map(|(first, _)| first.clone()));
    let resync_lost = tending.resync_lost.filter(|_| assembled.needs_resync());
    let resync_lost = resync_lost.map(|stripe| keeps_from_resync(&assembled, stripe));
    let trouble = trouble.or_else(|| Some(resync_lost.as_ref()?.0.clone()));
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
        "consistency": match (geometry.is_journaled(), geometry.copies() + geometry.parity()) {
            (true, _) => "journal",
            (false, 1) => "none",
            (false, _) => "resync",
        },
        "members": members,
        "spares": spares,
        "refused": refused,
        "sweep": match &tending.sweep {
            Some(sweep) => Some(progress(array, sweep, now)),
            None => tending.scrubbing.as_ref().map(|scrub| waiting(array, scrub)),
        },
        "resync_due": assembled.needs_resync(),
        "resync_lost": resync_lost.map(|(_, stripe)| stripe),
        "lost_stripes": lost,
        "scrubbed": scrubbed,
        "scrub_every_seconds": array.scrub_every.map(|every| every.as_secs()),
        "scrub_in_seconds": next,
        "member_timeout_ms": assembled.patience().deadline.as_millis() as u64,
        "slow_members": match assembled.patience().slow {
            SlowMembers::Warn => "warn",
            SlowMembers::Fail => "fail",
        },
        "trouble": trouble,
        "configured": !array.kept.load(Ordering::SeqCst),
        "counters": {
            "reconstructed": counters.reconstructed, "repaired": counters.repaired,
            "failed_members": counters.failed_members, "mismatches": counters.mismatches,
            "slow_members": counters.slow_members,
        },
    })
}

fn describe_scrub(last: &LastScrub) -> Value {
    let ago = unix_seconds().saturating_sub(last.at_unix);
    let seconds = last.seconds;
    match &last.outcome {
        Ok(found) => json!({
            "seconds_ago": ago, "seconds": seconds, "mismatches": found.mismatch_count,
            "mismatched_stripes": found.mismatches, "lost_stripes": found.lost,
        }),
        Err(why) => json!({ "seconds_ago": ago, "seconds": seconds, "error": why }),
    }
}

/// What to do where an array has too few members to be assembled.
pub const TOO_FEW: &str = "connect those that are missing, and `corebay array assemble NAME`; if they are lost, \
    `corebay array assemble NAME DISK... --lose NAME` takes stale ones and loses what was written without them";

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

/// A stripe that keeps a resync from its end, with what there is to say about it.
fn keeps_from_resync(assembled: &Assembled, stripe: u64) -> (String, Value) {
    let geometry = assembled.geometry();
    let blocks = geometry.block_size().blocks_in(geometry.stripe_bytes());
    let first = stripe * blocks;
    let last = first + blocks - 1;
    let said = format!(
        "the resync does not end: some of blocks {first} to {last} cannot be read; write or deallocate all of \
         these blocks (it is tried again at least once an hour, and at the next start)"
    );
    (
        said,
        json!({ "stripe": stripe, "first_block": first, "blocks": blocks }),
    )
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

/// A scrub that goes on once it may.
fn waiting(array: &ArrayMedium, scrub: &Scrubbing) -> Value {
    let geometry = array.assembled().geometry();
    let strip = u64::from(geometry.strip_bytes());
    json!({
        "kind": "scrub",
        "waiting": true,
        "role": null,
        "done_bytes": scrub.found.done * strip,
        "total_bytes": geometry.stripes() * strip,
        "bytes_per_second": 0,
        "seconds_left": null,
    })
}

fn progress(array: &ArrayMedium, sweep: &Sweep, now: Time) -> Value {
    let assembled = array.assembled();
    let (done, total) = assembled.progress();
    let strip = u64::from(assembled.geometry().strip_bytes());
    // Before the first of it, as much is to be done as there is.
    let total = if total == 0 {
        assembled.geometry().stripes()
    } else {
        total
    };
    let done = done.max(sweep.from).min(total);
    let millis = u64::try_from(now.since(sweep.since).as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let rate = done
        .saturating_sub(sweep.from)
        .saturating_mul(strip)
        .saturating_mul(1000)
        / millis;
    let left = (total - done).saturating_mul(strip);
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
