//! Arrays that are made, found and closed while the appliance runs. On the main thread, which lets the
//! first core do what takes long and goes on meanwhile.
//!
//! # Making an array
//! 1. What can be judged is judged; the disks and the name are claimed, and memory for each core.
//! 2. The first core writes the members, or reads them, and assembles the array. A crash leaves members
//!    of an array that no start looks for: `corebay array assemble` finds it.
//! 3. Every core opens it, and the state file keeps it: from here on each start looks for it.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

use corebay_conf::{Appliance, Size, appliance::Level, array_words, limits::ARRAYS_MAX};
use corebay_core::{arena::Region, buffer::BufferPool, units::CoreId};
use corebay_raid::{
    Patience,
    geometry::{Geometry, InvalidGeometry, ROLES_MAX},
    state::{SPARES_MAX, Uuid},
    sweep::Pace,
    within,
};
use corebay_target::namespace::NamespaceSpec;
use serde_json::Value;
use tracing::{error, info, warn};

use super::{
    array_plan::ArrayPlan,
    arrays::{Answer, ArrayMedium, Finding, Found, Named, uuids},
    control::{Reply, RpcError},
    environment::{Medium, PlainMedium},
    kept::{self, KeptScrub, Made},
    making::Making,
    operate::{array, free, names, text},
    pools,
    reload::Running,
    run::Main,
    spares::array_lists,
    tend,
};

/// Tasks of an array that may wait for its scratch memory while it is made.
pub(super) const WAITERS: usize = 512;

/// How often memory is looked at that a silent disk has kept.
const RECLAIM: Duration = Duration::from_secs(1);

/// Does what one of these methods says; `None` for other methods.
pub fn manage(
    main: &mut Main,
    appliance: &Appliance,
    method: &str,
    params: &Value,
) -> Option<Reply> {
    let begun = match method {
        "array.create" => main.create_array(appliance, params),
        "array.assemble" => main.assemble_array(appliance, params),
        "array.stop" => main.stop_array(appliance, params),
        _ => return None,
    };
    Some(begun.unwrap_or_else(|error| Reply::Now(Err(error))))
}

/// An array that is being made or found, and what it has taken meanwhile.
struct Job {
    finding: Finding,
    /// It is made, not looked for.
    is_new: bool,
    /// No start looks for it unless it is kept.
    keep: bool,
    /// For each core, of so many bytes.
    regions: Vec<Region>,
    bytes: usize,
    claims: Vec<String>,
    answer: Answer,
}

/// How an array that was made while the appliance ran, and was stopped, is found again: as it was then.
#[derive(Clone)]
pub struct Stopped {
    plan: ArrayPlan,
    members: Vec<String>,
    spares: Vec<String>,
}

/// What is looked for: the members and spares by name, and whether each start does from now on.
struct LookedFor {
    plan: ArrayPlan,
    members: Vec<String>,
    spares: Vec<String>,
    keep: bool,
}

fn done() -> Reply {
    Reply::Now(Ok(serde_json::json!({})))
}

fn member_names(medium: &ArrayMedium) -> Vec<String> {
    let members = medium.members().into_iter().flatten();
    members.map(|disk| disk.name).collect()
}

fn number(params: &Value, key: &str) -> Result<Option<u8>, RpcError> {
    let Some(value) = params.get(key).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let number = value.as_u64().and_then(|number| u8::try_from(number).ok());
    let wrong = || RpcError::params(format!("`{key}` is no number from 0 to 255"));
    number.ok_or_else(wrong).map(Some)
}

fn given<'p>(params: &'p Value, key: &str) -> Result<Option<&'p str>, RpcError> {
    match params.get(key).is_none_or(Value::is_null) {
        true => Ok(None),
        false => text(params, key).map(Some),
    }
}

fn size(params: &Value, key: &str, default: Option<Size>) -> Result<Option<Size>, RpcError> {
    let Some(text) = given(params, key)? else {
        return Ok(default);
    };
    let parsed = text.parse::<Size>();
    let parsed = parsed.map_err(|error| RpcError::params(format!("`{key}`: {error}")))?;
    Ok(Some(parsed))
}

/// What is asked for, but for its members.
fn plan(name: &str, params: &Value, roles: usize) -> Result<ArrayPlan, RpcError> {
    let level = array_words::level(
        text(params, "level")?,
        number(params, "data")?,
        number(params, "parity")?,
    );
    let consistency = given(params, "consistency")?.unwrap_or("journal");
    let strip = size(params, "strip", Some(Size::KIB.times(64)))?;
    let level = level.map_err(RpcError::params)?;
    let zone = given(params, "zone")?;
    let zone = zone.map(|text| array_words::zone_bytes(text, level));
    Ok(ArrayPlan {
        name: name.to_owned(),
        level,
        roles,
        strip_bytes: strip.map_or(0, |s| u32::try_from(s.bytes()).unwrap_or(u32::MAX)),
        consistency: array_words::consistency(consistency).map_err(RpcError::params)?,
        zone_bytes: zone.transpose().map_err(RpcError::params)?,
        create: true,
        pace: pace(params)?,
        scrub: scrub(params)?,
        patience: patience(params)?,
        uuid: None,
        as_found: false,
        lose: Vec::new(),
    })
}

fn pace(params: &Value) -> Result<Pace, RpcError> {
    let mib = |size: Size| u32::try_from(size.bytes() >> 20).unwrap_or(u32::MAX);
    let floor = size(params, "rebuild_floor", Some(Size::MIB.times(20)))?.map_or(0, mib);
    let ceiling = size(params, "rebuild_ceiling", None)?.map(mib);
    if floor == 0 || ceiling == Some(0) {
        let message = "a rate of a rebuild is at least 1MiB in a second";
        return Err(RpcError::params(message));
    }
    if ceiling.is_some_and(|ceiling| ceiling < floor) {
        return Err(RpcError::params(
            "the ceiling of a rebuild is below its floor",
        ));
    }
    Ok(Pace {
        floor_mib_s: floor,
        ceiling_mib_s: ceiling.unwrap_or(0),
    })
}

fn scrub(params: &Value) -> Result<Option<std::time::Duration>, RpcError> {
    let interval = given(params, "scrub")?.unwrap_or("never");
    array_words::scrub_interval(interval).map_err(RpcError::params)
}

fn array_uuid(params: &Value) -> Result<Option<Uuid>, RpcError> {
    let Some(text) = given(params, "uuid")? else {
        return Ok(None);
    };
    let parsed = text.parse::<uuid::Uuid>();
    let wrong = |_| RpcError::params(format!("\"{text}\" is no UUID"));
    Ok(Some(Uuid(*parsed.map_err(wrong)?.as_bytes())))
}

fn patience(params: &Value) -> Result<Patience, RpcError> {
    let mut patience = Patience::default();
    if let Some(time) = given(params, "member_timeout")? {
        patience.deadline = array_words::member_timeout(time).map_err(RpcError::params)?;
    }
    if let Some(word) = given(params, "slow_members")? {
        patience.slow = array_words::slow_members(word).map_err(RpcError::params)?;
    }
    Ok(patience)
}

/// An array that is to be made.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) plan: ArrayPlan,
    pub(super) members: Vec<String>,
    pub(super) spares: Vec<String>,
}

impl Wanted {
    /// Of the parameters of `array.create`.
    pub(super) fn parse(params: &Value) -> Result<Self, RpcError> {
        let name = text(params, "array")?;
        array_words::name(name).map_err(RpcError::params)?;
        let (members, spares) = (names(params, "members")?, names(params, "spares")?);
        let lose = names(params, "lose")?;
        let mut plan = plan(name, params, members.len())?;
        let mut seen = BTreeSet::new();
        for disk in members.iter().chain(&spares) {
            if !seen.insert(disk) {
                return Err(RpcError::params(format!(
                    "the disk \"{disk}\" is named twice"
                )));
            }
        }
        if let Some(other) = lose.iter().find(|name| !seen.contains(name)) {
            let message = format!("\"{other}\" is to be lost, and is no disk of the new array");
            return Err(RpcError::params(message));
        }
        plan.lose = lose;
        Ok(Self {
            name: name.to_owned(),
            plan,
            members,
            spares,
        })
    }

    /// An array is what is wanted: the same order again has been carried out already.
    fn is(&self, medium: &ArrayMedium) -> bool {
        let wish = *medium.assembled().geometry().wish();
        let plan = &self.plan;
        (wish.level, wish.roles) == (plan.level, plan.roles)
            && (wish.strip_bytes, wish.consistency) == (plan.strip_bytes, plan.consistency)
            && self.members == member_names(medium)
            && self.spares == medium.spares()
    }

    /// These disks can be its members and spares, by what they are.
    pub(super) fn check(&self, members: &[Named], spares: &[Named]) -> Result<(), RpcError> {
        check_geometry(&self.plan, members, spares)
    }
}

/// The geometry fits the members that were named.
fn check_geometry(plan: &ArrayPlan, members: &[Named], spares: &[Named]) -> Result<(), RpcError> {
    let all = || members.iter().chain(spares);
    let Some(first) = members.first() else {
        return Err(RpcError::params("an array has one member at least"));
    };
    if spares.len() > SPARES_MAX {
        return Err(RpcError::params(format!("at most {SPARES_MAX} spares")));
    }
    if let Some(null) = all().find(|disk| matches!(disk.medium, PlainMedium::Null(..))) {
        let message = format!(
            "the disk \"{}\" keeps nothing: a null disk cannot be in an array",
            null.name
        );
        return Err(RpcError::refused(message));
    }
    let size = first.medium.info().block_size;
    if let Some(other) = all().find(|disk| disk.medium.info().block_size != size) {
        let other_size = other.medium.info().block_size;
        return Err(RpcError::refused(format!(
            "the disk \"{}\" has blocks of {other_size} bytes, \"{}\" of {size}",
            other.name, first.name
        )));
    }
    let smallest = all().min_by_key(|disk| disk.medium.info().bytes());
    let smallest = smallest.unwrap_or(first);
    let bytes = smallest.medium.info().bytes();
    match Geometry::new(plan.wish(size, bytes), bytes) {
        Ok(_) => Ok(()),
        Err(InvalidGeometry::TooSmall { bytes, needs }) => Err(RpcError::refused(format!(
            "the disk \"{}\" is too small: it has {bytes} bytes, the array needs {needs} of each",
            smallest.name
        ))),
        Err(error) => Err(RpcError::params(error.to_string())),
    }
}

impl Main {
    fn create_array(&mut self, appliance: &Appliance, params: &Value) -> Result<Reply, RpcError> {
        let name = text(params, "array")?;
        if let Some(medium) = self.running_array(name)
            && Wanted::parse(params)?.is(&medium)
        {
            return Ok(done());
        }
        self.check_name(appliance, name)?;
        let is_known = |array: &corebay_conf::appliance::Array| {
            // One that was made while an appliance ran is not, once it was stopped.
            array.name == name && (array.kept.is_none() || self.state.keeps_array(name))
        };
        if appliance.arrays().iter().any(is_known) {
            return Err(RpcError::refused(format!(
                "the configuration has an array \"{name}\" already: `corebay array assemble {name}` \
                 looks for it"
            )));
        }
        let wanted = Wanted::parse(params)?;
        let members = self.free_disks(appliance, &wanted.members)?;
        let spares = self.free_disks(appliance, &wanted.spares)?;
        wanted.check(&members, &spares)?;
        let plan = wanted.plan;
        let medium = |disk: Named| (disk.name, Some(disk.medium));
        let finding = Finding {
            making: Making::new(&plan, members.iter().map(|disk| &disk.name)),
            plan,
            members: members.into_iter().map(medium).collect(),
            spares: spares.into_iter().map(medium).collect(),
            others: Vec::new(),
            running: Vec::new(),
        };
        self.launch(finding, true, true)
    }

    fn assemble_array(&mut self, appliance: &Appliance, params: &Value) -> Result<Reply, RpcError> {
        let name = text(params, "array")?;
        let (disks, lose) = (names(params, "disks")?, names(params, "lose")?);
        if let Some(other) = lose.iter().find(|other| *other != name) {
            return Err(RpcError::params(format!(
                "only what was written to \"{name}\" without its stale members can be lost here, \
                 not \"{other}\""
            )));
        }
        if let Some(medium) = self.running_array(name) {
            let members = member_names(&medium);
            if lose.is_empty() && disks.iter().all(|disk| members.contains(disk)) {
                return Ok(done());
            }
        }
        self.check_name(appliance, name)?;
        let LookedFor {
            mut plan,
            members,
            spares,
            keep,
        } = self.looked_for(appliance, name, disks, params)?;
        plan.create = false;
        plan.lose = lose;
        let members = self.disks_that_are_there(appliance, &members)?;
        let spares = self.disks_that_are_there(appliance, &spares)?;
        let listed = |name: &String| {
            [&members, &spares]
                .into_iter()
                .flatten()
                .any(|d| d.0 == *name)
        };
        let since = self.state.array_disks(name).iter();
        let since: Vec<String> = since.filter(|name| !listed(name)).cloned().collect();
        let others = match keep {
            true => Vec::new(),
            false => self.disks_that_are_there(appliance, &since)?,
        };
        let finding = Finding {
            making: Making::new(&plan, [].into_iter()),
            plan,
            members,
            spares,
            others,
            running: uuids(self.exports.media.arrays()),
        };
        self.launch(finding, false, keep)
    }

    /// An array of this name, where it runs and is not about to be stopped.
    fn running_array(&self, name: &str) -> Option<Arc<ArrayMedium>> {
        let mut arrays = self.exports.media.arrays().iter();
        let known = arrays.find(|array| array.name == name)?;
        (!known.ending.load(Ordering::SeqCst)).then(|| known.clone())
    }

    /// What an order to assemble an array looks for: as the configuration says, or as it was when it was
    /// stopped, or whatever the disks hold that are named.
    fn looked_for(
        &self,
        appliance: &Appliance,
        name: &str,
        disks: Vec<String>,
        params: &Value,
    ) -> Result<LookedFor, RpcError> {
        let known = appliance.arrays().iter().find(|array| array.name == name);
        if !disks.is_empty() {
            // The name of an array that is only away is not given to another one.
            let away = known.and_then(|array| ArrayPlan::of(array).uuid);
            let plan = ArrayPlan {
                name: name.to_owned(),
                // As many strips as an array with these members can have.
                level: Level::Striped,
                roles: (disks.len() + 4).min(ROLES_MAX),
                strip_bytes: 64 << 10,
                consistency: corebay_conf::appliance::Consistency::Journal,
                zone_bytes: None,
                create: false,
                pace: pace(params)?,
                scrub: scrub(params)?,
                patience: patience(params)?,
                uuid: array_uuid(params)?.or(away),
                as_found: true,
                lose: Vec::new(),
            };
            let (members, spares, keep) = (disks, Vec::new(), true);
            return Ok(LookedFor {
                plan,
                members,
                spares,
                keep,
            });
        }
        let in_file = known.is_some_and(|array| array.kept.is_none());
        if !in_file && let Some(stopped) = self.exports.media.stopped.get(name) {
            let Stopped {
                plan,
                members,
                spares,
            } = stopped.clone();
            return Ok(LookedFor {
                plan,
                members,
                spares,
                keep: true,
            });
        }
        let Some(array) = known else {
            return Err(RpcError::params(format!(
                "the configuration has no array \"{name}\": name the disks that are its members"
            )));
        };
        let named = |ids: &[corebay_conf::appliance::DiskId]| {
            let names = ids.iter().map(|id| appliance.disk(*id).name.clone());
            names.collect::<Vec<_>>()
        };
        let mut spares = named(&array.spares);
        let since = self.state.array_spares(name).iter();
        spares.extend(since.filter(|disk| !array_lists(appliance, disk)).cloned());
        Ok(LookedFor {
            plan: ArrayPlan::of(array),
            members: named(&array.members),
            spares,
            keep: array.kept.is_some(),
        })
    }

    fn check_name(&mut self, appliance: &Appliance, name: &str) -> Result<(), RpcError> {
        array_words::name(name).map_err(RpcError::params)?;
        let media = &mut self.exports.media;
        if media.array(name).is_some() {
            return Err(RpcError::refused(format!(
                "the array \"{name}\" runs already"
            )));
        }
        if appliance.disks().iter().any(|disk| disk.name == name) {
            return Err(RpcError::refused(format!("a disk is named \"{name}\"")));
        }
        if media.claimed().contains(name) {
            let message = format!("an array \"{name}\" is being made already");
            return Err(RpcError::refused(message));
        }
        if media.arrays().len() >= ARRAYS_MAX {
            let message =
                format!("there are {ARRAYS_MAX} arrays already, and no more are possible");
            return Err(RpcError::refused(message));
        }
        Ok(())
    }

    fn free_disks(
        &mut self,
        appliance: &Appliance,
        names: &[String],
    ) -> Result<Vec<Named>, RpcError> {
        let media = &mut self.exports.media;
        let disks = names.iter();
        disks
            .map(|name| free(appliance, media, &mut self.state, name))
            .collect()
    }

    /// The same, where some may be missing.
    fn disks_that_are_there(
        &mut self,
        appliance: &Appliance,
        names: &[String],
    ) -> Result<Vec<(String, Option<PlainMedium>)>, RpcError> {
        let mut disks = Vec::new();
        for name in names {
            match free(appliance, &mut self.exports.media, &mut self.state, name) {
                Ok(disk) => disks.push((disk.name, Some(disk.medium))),
                Err(error) if error.is_unavailable() => {
                    warn!("{}", error.message);
                    disks.push((name.clone(), None));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(disks)
    }

    /// Lets the first core begin.
    fn launch(&mut self, finding: Finding, is_new: bool, keep: bool) -> Result<Reply, RpcError> {
        let (name, bytes) = (finding.plan.name.clone(), finding.plan.scratch_bytes());
        let media = &mut self.exports.media;
        // Which array it is shows only as it is found: two at a time might turn out to be the same one.
        if !is_new && media.is_assembling {
            return Err(RpcError::refused(
                "another array is being assembled: wait for its end",
            ));
        }
        let Some(regions) = media.reserve.take(bytes, self.cores) else {
            return Err(RpcError::refused(format!(
                "no memory is left for the array \"{name}\": it needs {} MiB for each of {} cores, of \
                 what reactor.array_memory keeps for arrays to come {} MiB are free; stop an array, or \
                 raise reactor.array_memory and restart",
                bytes >> 20,
                self.cores,
                media.reserve.free_bytes() >> 20
            )));
        };
        let disks = finding.members.iter().chain(&finding.spares);
        let disks = disks.chain(&finding.others);
        let mut claims: Vec<String> = disks.map(|(disk, _)| disk.clone()).collect();
        claims.push(name);
        media.claimed().extend(claims.iter().cloned());
        media.is_assembling |= !is_new;
        media.making.extend(is_new.then(|| finding.making.clone()));
        let (answer, outcome) = mpsc::channel();
        let job = Job {
            finding,
            is_new,
            keep,
            regions,
            bytes,
            claims,
            answer,
        };
        self.port.send(
            CoreId(0),
            Box::new(move |core| {
                let own = core.clone();
                core.spawn_control(async move { work(&own, job).await });
            }),
        );
        Ok(Reply::Order(outcome))
    }

    /// The first core has found an array, or has not.
    fn array_was_found(&mut self, mut job: Job, mut found: Result<Found, crate::cli::Failure>) {
        let media = &mut self.exports.media;
        for claim in &job.claims {
            media.claimed().remove(claim);
        }
        media.is_assembling &= job.is_new;
        let own = |making: &Arc<Making>| Arc::ptr_eq(making, &job.finding.making);
        media.making.retain(|making| !own(making));
        let kept = self.cores - job.regions.len();
        match media.reserve.take(job.bytes, kept) {
            Some(others) => job.regions.extend(others),
            None => {
                let message = "a disk does not answer, and no memory is left but what it keeps";
                found = found.and(Err(crate::cli::Failure::new(
                    message,
                    "take that disk away",
                )));
            }
        }
        let (plan, answer) = (job.finding.plan, job.answer);
        let opened = match found {
            Ok(found) => {
                let medium = Arc::new(found.into_medium(&plan, job.regions));
                medium.kept.store(job.keep, Ordering::SeqCst);
                kept::begin(&medium, &mut self.state);
                self.open_array(&medium)
            }
            Err(failure) => {
                let regions = job.regions.into_iter();
                regions.for_each(|region| media.reserve.give(region));
                Err(failure.to_string())
            }
        };
        if let Err(why) = &opened {
            warn!("{why}");
        }
        let _ = answer.send(opened);
    }

    fn open_array(&mut self, medium: &Arc<ArrayMedium>) -> Result<(), String> {
        let opening = medium.clone();
        let opened = self.running().ask_each_core(move |core, answer| {
            let opened = core.environment.open_array(&opening).map(drop);
            let _ = answer.send(opened.map_err(|error| {
                crate::cli::Failure::new(format!("{} cannot open it: {error}", core.id()), "")
            }));
        });
        if let Err(failure) = opened {
            self.close_everywhere(medium);
            return Err(format!("array \"{}\": {failure}", medium.name));
        }
        let tending = medium.clone();
        let tend = Box::new(move |core: &tend::MachineCore| tend::tend(core, tending));
        self.port.send(CoreId(0), tend);
        self.exports.media.add_array(medium.clone());
        let (media, floor) = (&self.exports.media, Medium::Array(medium.clone()));
        pools::floor_returned(&self.port, media, &medium.name, floor);
        self.keep_array(medium).map_err(|why| {
            let name = &medium.name;
            format!("the array \"{name}\" runs, but the next start does not look for it: {why}")
        })
    }

    /// Keeps an array that was made while the appliance ran, as it is now.
    pub fn keep_array(&mut self, medium: &Arc<ArrayMedium>) -> Result<(), String> {
        if medium.kept.load(Ordering::SeqCst) {
            self.state.keep_array(&medium.name, Made::of(medium));
        } else {
            let members = medium.members().into_iter().flatten();
            let names = members.map(|disk| disk.name).collect();
            self.state.note_array_disks(&medium.name, names);
            self.state.note_array_spares(&medium.name, medium.spares());
        }
        self.state.save().map_err(|failure| failure.to_string())
    }

    /// Keeps how a scrub ended, or how far it is.
    pub fn keep_scrub(&mut self, medium: &Arc<ArrayMedium>) {
        let uuid = medium.assembled().uuid();
        self.state.keep_scrub(uuid, KeptScrub::of(medium));
        if let Err(failure) = self.state.save() {
            warn!("what is known of the scrub is not kept: {failure}");
        }
    }

    /// Hosts of the array's namespaces learn its size.
    pub fn array_has_grown(&mut self, medium: &Arc<ArrayMedium>) {
        let own = Medium::Array(medium.clone());
        let running = self.running();
        for subsystem in running.registry.subsystems() {
            for present in subsystem.namespaces() {
                if !present.medium.is_same(&own) {
                    continue;
                }
                let spec = Arc::new(NamespaceSpec {
                    nsid: present.nsid,
                    identity: present.identity,
                    medium: own.clone(),
                    info: own.info(),
                    read_only: present.read_only,
                    live: present.live.clone(),
                });
                if let Err(failure) = running.stage(0, &spec) {
                    error!("the namespace {} keeps its size: {failure}", spec.nsid);
                    continue;
                }
                running.attach(&subsystem, &spec, 0);
                running.tell(&subsystem, spec.nsid);
                info!(subsystem = %subsystem.names.nqn, nsid = spec.nsid, "has grown");
            }
        }
    }

    fn running(&mut self) -> Running<'_> {
        Running {
            port: &self.port,
            cores: self.cores,
            registry: &self.exports.registry,
            media: &mut self.exports.media,
        }
    }

    fn stop_array(&mut self, appliance: &Appliance, params: &Value) -> Result<Reply, RpcError> {
        let name = text(params, "array")?;
        if self.exports.media.forget_absent(name) {
            self.state.forget_array(name);
            let saved = self.state.save();
            saved.map_err(|failure| RpcError::refused(failure.to_string()))?;
            return Ok(done());
        }
        let runs = self.exports.media.array(name).is_some();
        if !runs && self.exports.media.stopped.contains_key(name) {
            return Ok(done());
        }
        let medium = array(&self.exports.media, params)?;
        if let Some(used) = self.user_of(&medium) {
            return Err(RpcError::refused(format!(
                "the array \"{name}\" is exported as {used}: take that namespace out of the \
                 configuration, and reload it (SIGHUP)"
            )));
        }
        if let Some(pool) = self.exports.media.pools.on(name) {
            return Err(RpcError::refused(format!(
                "the array \"{name}\" is beneath the pool \"{pool}\""
            )));
        }
        if medium.ending.swap(true, Ordering::SeqCst) {
            let message = format!("the array \"{name}\" is being stopped already");
            return Err(RpcError::refused(message));
        }
        let file = appliance.arrays().iter();
        let mut file = file.filter(|array| array.kept.is_none());
        if file.any(|array| array.name == name) {
            info!(
                array = name,
                "the configuration names it: the next start assembles it again"
            );
        }
        let (answer, outcome) = mpsc::channel();
        self.port.send(
            CoreId(0),
            Box::new(move |core| {
                let own = core.clone();
                core.spawn_control(async move {
                    // A disk that is still being written is free for nobody.
                    let ended = tend::end(&own, &medium, Some(tend::END_TIMEOUT)).await;
                    if let Err(error) = ended {
                        warn!(array = medium.name, %error, "it was not ended cleanly");
                    }
                    let shut = shut_everywhere(&own, &medium);
                    let shut = within(&own.reactor, tend::END_TIMEOUT, shut).await;
                    if shut.is_none() {
                        warn!(array = medium.name, "something still goes on in it");
                    }
                    let unended = tend::quiet(&own, &medium).await;
                    let stopped = move |main: &mut Main| {
                        let _ = answer.send(main.array_was_shut(&medium, unended));
                    };
                    own.environment.keeper.then(stopped);
                });
            }),
        );
        Ok(Reply::Order(outcome))
    }

    /// The namespace that exports an array.
    fn user_of(&self, medium: &Arc<ArrayMedium>) -> Option<String> {
        let own = Medium::Array(medium.clone());
        for subsystem in self.exports.registry.subsystems() {
            let mut namespaces = subsystem.namespaces().into_iter();
            if let Some(namespace) = namespaces.find(|known| known.medium.is_same(&own)) {
                let nqn = &subsystem.names.nqn;
                return Some(format!("namespace {} of {nqn}", namespace.nsid));
            }
        }
        None
    }

    /// Nothing goes on in an array any more: it is closed, and no start looks for it.
    fn array_was_shut(
        &mut self,
        medium: &Arc<ArrayMedium>,
        unended: Vec<String>,
    ) -> Result<(), String> {
        self.close_everywhere(medium);
        self.exports.media.remove_array(medium);
        info!(array = medium.name, "stopped");
        if medium.kept.load(Ordering::SeqCst) {
            self.state.forget_array(&medium.name);
            let stopped = Stopped {
                plan: ArrayPlan::again(medium),
                members: member_names(medium),
                spares: medium.spares(),
            };
            let all = &mut self.exports.media.stopped;
            all.insert(medium.name.clone(), stopped);
            if all.len() > ARRAYS_MAX {
                all.pop_first();
            }
        }
        self.state.save().map_err(|failure| failure.to_string())?;
        if unended.is_empty() {
            return Ok(());
        }
        let said = format!(
            "the array \"{}\" is stopped, but its disk {} has not ended what was asked of it: it is used \
             again once it has, or once corebay was restarted",
            medium.name,
            unended.join(", ")
        );
        for disk in unended {
            let (medium, name) = (medium.clone(), disk.clone());
            let is_out = move || medium.unended().contains(&name);
            self.exports.media.keep_from_use(disk, is_out);
        }
        Err(said)
    }

    fn close_everywhere(&mut self, medium: &Arc<ArrayMedium>) {
        let (sender, regions) = mpsc::channel();
        let closing = medium.clone();
        self.running().on_each_core(move |core, answer| {
            match core.environment.close_array(&closing) {
                Some(Ok(region)) => drop(sender.send(region)),
                Some(Err(pool)) => give_back_later(core, pool),
                None => {}
            }
            let _ = answer.send(Ok(()));
        });
        let media = &mut self.exports.media;
        let mut count = 0;
        for region in regions.try_iter().chain(medium.take_all_scratch()) {
            count += 1;
            media.reserve.give(region);
        }
        if count < self.cores {
            warn!(
                array = medium.name,
                "some of its memory is still in use, and comes back once its disks have ended what was asked \
                 of them"
            );
        }
    }
}

/// On the first core.
async fn work(core: &tend::MachineCore, mut job: Job) {
    let pool = BufferPool::new(job.regions.remove(0), WAITERS);
    let devices = &core.environment.devices;
    let found = match job.is_new {
        true => {
            let tell = |why| drop(job.answer.send(Err(why)));
            job.finding.make_while_running(devices, &pool, tell).await
        }
        false => {
            let found = job.finding.find(devices, &pool).await;
            found.map_err(|missed| missed.failure)
        }
    };
    match pool.reclaim() {
        Ok(region) => job.regions.insert(0, region),
        Err(pool) => give_back_later(core, pool),
    }
    let keeper = &core.environment.keeper;
    keeper.then(move |main| main.array_was_found(job, found));
}

/// A disk that was looked at and does not answer keeps the buffer that it was given: the memory comes back
/// once it has ended that.
fn give_back_later(core: &tend::MachineCore, mut pool: BufferPool) {
    let own = core.clone();
    core.spawn_control(async move {
        loop {
            match pool.reclaim() {
                Ok(region) => {
                    let keeper = &own.environment.keeper;
                    keeper.then(move |main| main.exports.media.reserve.give(region));
                    return;
                }
                Err(still) => pool = still,
            }
            own.reactor.sleep(RECLAIM).await;
        }
    });
}

/// Shuts every core's door, and waits for what is within.
async fn shut_everywhere(core: &tend::MachineCore, medium: &Arc<ArrayMedium>) {
    let medium = medium.clone();
    let shut = core.call_all(move |core, reply| {
        let own = core.clone();
        match core.environment.door(&medium) {
            Some(door) => door.shut(move || reply.send(&own, ())),
            None => reply.send(core, ()),
        }
    });
    shut.await;
}
