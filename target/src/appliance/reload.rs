//! SIGHUP: reads the configuration again and makes the running appliance what it says.
//!
//! Subsystems, namespaces, allowed hosts and referrals change while everything else goes on; hosts
//! learn of it by asynchronous events. What is fixed for the life of the process (cores, memory,
//! transport limits, the data folder, the names of a subsystem) is compared, and said to need a
//! restart; a file with other listeners is refused, and so is one that does not fit the arrays that run.
//!
//! Invariants:
//! - It is all or nothing. A file with a mistake changes nothing; and before the first change all
//!   that can fail is done: new disks are opened, by each core too, and new names are kept. Where one
//!   of it fails, what was opened is closed, and the old configuration goes on.
//! - A disk that stays is not opened a second time: its namespace keeps its medium.

use std::{
    collections::BTreeSet,
    rc::Rc,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

use corebay_conf::{Appliance, appliance::Subsystem as Configured};
use corebay_core::{mesh::Port, units::CoreId};
use corebay_target::{
    controller::Event,
    core::{Core, Message},
    fabrics::{end_association, report, tell_discovery},
    namespace::NamespaceSpec,
    subsystem::{Registry, Subsystem},
};
use tracing::{info, warn};

use super::{
    environment::{MachineEnvironment, Medium},
    media::is_exported,
    media::{self, Media},
    pools,
    run::referrals,
    state::State,
};
use crate::cli::Failure;

/// How long a core may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The running appliance, as its main thread sees it.
pub struct Running<'a> {
    /// The main thread's port in the mesh.
    pub port: &'a Port<Message<MachineEnvironment>>,
    /// How many cores there are.
    pub cores: usize,
    /// What is exported.
    pub registry: &'a Arc<Registry<Medium>>,
    /// The disks that are open.
    pub media: &'a mut Media,
}

type Spec = Arc<NamespaceSpec<Medium>>;

/// Makes the running appliance, which is what `old` says, what `new` says.
pub fn apply(
    running: &mut Running<'_>,
    old: &Appliance,
    new: &Appliance,
    state: &mut State,
) -> Result<(), Failure> {
    if old.listeners() != new.listeners() {
        // Subsystems name their listeners, so nothing can be told apart from it.
        return Err(Failure::new(
            "[[listener]] has changed, which takes a restart",
            "restart corebay, or put the listeners back as they were",
        ));
    }
    running.check_arrays(new)?;
    let pools = |appliance: &Appliance| -> Vec<_> {
        let name = |pool: &corebay_conf::appliance::Pool| {
            (
                pool.name.clone(),
                appliance.store_name(pool.store).to_owned(),
            )
        };
        appliance.pools().iter().map(name).collect()
    };
    if pools(old) != pools(new) {
        return Err(Failure::new(
            "[[pool]] has changed, which takes a restart",
            "restart corebay, or put the pools back as they were; `corebay pool` adds one at once",
        ));
    }
    let targets = running.prepare(new, state).inspect_err(|_| {
        running.on_each_core(|core, answer| {
            core.drop_staged();
            let _ = answer.send(Ok(()));
        });
        running.media.keep_only(old);
    })?;
    say_what_needs_a_restart(old, new);
    running.remove_subsystems(new);
    for (configured, target) in new.subsystems().iter().zip(targets) {
        let subsystem = running.registry.find(&configured.nqn).unwrap_or_else(|| {
            info!(subsystem = %configured.nqn, "added");
            media::add_subsystem(running.registry, configured, state)
        });
        running.change(&subsystem, configured, target);
    }
    running.media.keep_only(new);
    running.registry.set_referrals(referrals(new));
    running.tell_discovery();
    pools::reload(running.port, new, running.registry);
    Ok(())
}

/// Has every core open anew the namespaces whose media have changed, or their sizes, which are otherwise what they
/// were. Hosts are told; what they have in flight ends as it would have.
pub fn renew(
    running: &mut Running<'_>,
    appliance: &Appliance,
    state: &mut State,
) -> Result<(), Failure> {
    for configured in appliance.subsystems() {
        let Some(subsystem) = running.registry.find(&configured.nqn) else {
            continue;
        };
        for namespace in &configured.namespaces {
            // A volume's pool is renewed by its arrays, or not at all.
            let spec = running.media.spec(appliance, configured, namespace, state);
            let Some(spec) = spec else { continue };
            let present = subsystem.namespace(spec.nsid);
            let changed = present.is_some_and(|present| {
                let other = !present.medium.is_same(&spec.medium) || present.info != spec.info;
                present.identity == spec.identity && other
            });
            if changed {
                running.stage(0, &spec)?;
                if spec.medium.lost_writes() {
                    let nqn = &configured.nqn;
                    warn!(subsystem = %nqn, nsid = spec.nsid, "writes that were not flushed may be lost: hosts are told by their next Flush");
                    subsystem.writes_may_be_lost(spec.nsid);
                }
                running.attach(&subsystem, &spec, 0);
                running.tell(&subsystem, spec.nsid);
                info!(subsystem = %configured.nqn, nsid = spec.nsid, blocks = spec.info.blocks, "namespace ready again");
            }
        }
    }
    Ok(())
}

fn say_what_needs_a_restart(old: &Appliance, new: &Appliance) {
    for (what, changed) in [
        ("data_dir", old.data_dir() != new.data_dir()),
        ("[reactor]", old.reactor() != new.reactor()),
        ("[transport.tcp]", old.tcp() != new.tcp()),
        ("[log]", old.log() != new.log()),
    ] {
        if changed {
            warn!("{what} has changed: it takes effect at the next start");
        }
    }
}

/// What a subsystem is to export: each namespace, and the key that it is staged by where it is new.
type Target = Vec<(Spec, Option<usize>)>;

impl Running<'_> {
    /// Arrays are made and stopped over the control socket. What the file exports has to be there, and
    /// what it says of an array that runs has to be true.
    fn check_arrays(&self, new: &Appliance) -> Result<(), Failure> {
        for array in new.arrays() {
            let name = &array.name;
            let Some(running) = self.media.array(name) else {
                let mut absent = self.media.absent().iter();
                let is_absent = absent.any(|(absent, _)| absent == name);
                if is_exported(new, name) && !is_absent {
                    return Err(Failure::new(
                        format!("the array \"{name}\" does not run"),
                        format!(
                            "`corebay array create` or `corebay array assemble` of this name first, \
                             or restart corebay; {name} is no array that runs now"
                        ),
                    ));
                }
                warn!("the array \"{name}\" does not run: it is looked for at the next start");
                continue;
            };
            if is_exported(new, name) && running.ending.load(Ordering::SeqCst) {
                return Err(Failure::new(
                    format!("the array \"{name}\" is being stopped"),
                    "wait for its end, and assemble it again, before it is exported",
                ));
            }
            let geometry = running.assembled().geometry();
            if geometry.wish().level != array.level {
                return Err(Failure::new(
                    format!(
                        "the array \"{name}\" is {}, the file says {}",
                        geometry.wish().level,
                        array.level
                    ),
                    "write in [[array]] what it is",
                ));
            }
        }
        let named = |name: &str| new.arrays().iter().any(|array| array.name == name);
        let gone = self.media.arrays().iter().find(|array| !named(&array.name));
        match gone {
            None => Ok(()),
            Some(array) => Err(Failure::new(
                format!(
                    "the file names the array \"{}\" no more, and it runs",
                    array.name
                ),
                format!(
                    "`corebay array stop {}` first, or restart corebay",
                    array.name
                ),
            )),
        }
    }

    /// Does all of a change that can fail, and nothing that anybody sees.
    fn prepare(&mut self, new: &Appliance, state: &mut State) -> Result<Vec<Target>, Failure> {
        self.media.open(new, state)?;
        let mut targets = Vec::new();
        let mut keys = 0..;
        for configured in new.subsystems() {
            let present = self.registry.find(&configured.nqn);
            let mut target = Target::new();
            for namespace in &configured.namespaces {
                let present = present
                    .as_ref()
                    .and_then(|subsystem| subsystem.namespace(namespace.nsid));
                if present
                    .as_ref()
                    .is_some_and(|present| pools::is_by_pool(present))
                {
                    return Err(Failure::new(
                        format!(
                            "namespace {} of {} is a volume of a pool",
                            namespace.nsid, configured.nqn
                        ),
                        "choose another nsid, or take the volume from hosts (`corebay export remove`)",
                    ));
                }
                let Some(spec) = self.media.spec(new, configured, namespace, state) else {
                    // Their pools' home core sees to volumes.
                    continue;
                };
                if present.is_some_and(|present| is_same(&spec, &present)) {
                    target.push((spec, None));
                    continue;
                }
                let key = keys.next();
                self.stage(key.unwrap_or(0), &spec)?;
                target.push((spec, key));
            }
            targets.push(target);
        }
        state.save()?;
        Ok(targets)
    }

    pub fn stage(&self, key: usize, spec: &Spec) -> Result<(), Failure> {
        let spec = spec.clone();
        let nsid = spec.nsid;
        self.ask_each_core(move |core, answer| {
            let _ = answer.send(core.stage(key, spec.clone()).map_err(|error| {
                Failure::new(
                    format!(
                        "{} cannot open the disk of namespace {nsid}: {error}",
                        core.id()
                    ),
                    "",
                )
            }));
        })
    }

    fn remove_subsystems(&self, new: &Appliance) {
        let wanted: BTreeSet<_> = new.subsystems().iter().map(|s| s.nqn.clone()).collect();
        for subsystem in self.registry.subsystems() {
            let of_pools = subsystem
                .namespaces()
                .iter()
                .any(|spec| pools::is_by_pool(spec));
            if !wanted.contains(&subsystem.names.nqn) && !of_pools {
                info!(subsystem = %subsystem.names.nqn, "removed");
                self.registry.remove_subsystem(subsystem.id);
                self.end_controllers(&subsystem, |_| true);
                for namespace in subsystem.namespaces() {
                    self.detach(&subsystem, namespace.nsid);
                }
            }
        }
    }

    /// Brings one subsystem to what is configured.
    fn change(&self, subsystem: &Arc<Subsystem<Medium>>, configured: &Configured, target: Target) {
        let names = (configured.serial.as_str(), configured.model.as_str());
        if names != (&subsystem.names.serial, &subsystem.names.model)
            || !subsystem.is_served_only_at(&media::ports(configured))
        {
            warn!(
                subsystem = %configured.nqn,
                "its serial, model or listeners have changed: they take effect at the next start"
            );
        }
        let access = media::access(configured);
        subsystem.set_access(access.clone());
        self.end_controllers(subsystem, move |host| !access.admits(host));
        for present in subsystem.namespaces() {
            let is_volume = matches!(present.medium, Medium::Volume(_));
            if !is_volume && !target.iter().any(|(spec, _)| is_same(spec, &present)) {
                info!(subsystem = %configured.nqn, nsid = present.nsid, "namespace removed");
                self.detach(subsystem, present.nsid);
                self.tell(subsystem, present.nsid);
            }
        }
        for (spec, key) in target {
            if let Some(key) = key {
                info!(subsystem = %configured.nqn, nsid = spec.nsid, "namespace added");
                self.attach(subsystem, &spec, key);
                self.tell(subsystem, spec.nsid);
            }
        }
    }

    pub fn attach(&self, subsystem: &Arc<Subsystem<Medium>>, spec: &Spec, key: usize) {
        let id = subsystem.id;
        self.on_each_core(move |core, answer| {
            core.attach_staged(key, id);
            let _ = answer.send(Ok(()));
        });
        // Only now is it shown: every core can serve it.
        subsystem.add_namespace(spec.clone());
    }

    fn detach(&self, subsystem: &Arc<Subsystem<Medium>>, nsid: u32) {
        subsystem.remove_namespace(nsid);
        let id = subsystem.id;
        self.on_each_core(move |core, answer| {
            core.table(id).detach(nsid);
            let _ = answer.send(Ok(()));
        });
    }

    /// Runs on each core what cannot fail. A core that does not answer in time does it later.
    pub fn on_each_core(&self, action: impl CoreAction) {
        if let Err(failure) = self.ask_each_core(action) {
            warn!("{failure}");
        }
    }

    /// Runs `action` on each core and waits for their answers.
    pub fn ask_each_core(&self, action: impl CoreAction) -> Result<(), Failure> {
        let (answer, answers) = mpsc::channel();
        for core in 0..self.cores {
            let (action, answer) = (action.clone(), answer.clone());
            self.port
                .send(CoreId(core), Box::new(move |core| action(core, &answer)));
        }
        for _ in 0..self.cores {
            answers
                .recv_timeout(ANSWER_TIMEOUT)
                .map_err(|_| Failure::new("a core does not answer", "look at the log"))??;
        }
        Ok(())
    }

    /// Ends the associations of the hosts that `ends` says.
    fn end_controllers(
        &self,
        subsystem: &Arc<Subsystem<Medium>>,
        ends: impl Fn(&corebay_nvme::spec::nqn::Nqn) -> bool + Send + 'static,
    ) {
        let subsystem = subsystem.clone();
        self.port.send(
            CoreId(0),
            Box::new(move |core| {
                for controller in subsystem.controllers() {
                    if ends(&controller.host_nqn) {
                        end_association(core, &controller, "the host may not connect any more");
                    }
                }
            }),
        );
    }

    /// Tells the subsystem's hosts that a namespace has changed.
    pub fn tell(&self, subsystem: &Arc<Subsystem<Medium>>, nsid: u32) {
        let subsystem = subsystem.clone();
        self.port.send(
            CoreId(0),
            Box::new(move |core| {
                for controller in subsystem.controllers() {
                    controller.namespace_changed(nsid);
                    report(core, &controller, Event::NamespaceAttributeChanged);
                }
            }),
        );
    }

    /// Tells the hosts that keep a connection to the discovery subsystem.
    fn tell_discovery(&self) {
        self.registry.bump_generation();
        self.port
            .send(CoreId(0), Box::new(|core| tell_discovery(core)));
    }
}

/// What a core does, and how it answers.
pub trait CoreAction:
    Fn(&Rc<Core<MachineEnvironment>>, &mpsc::Sender<Result<(), Failure>>) + Clone + Send + 'static
{
}

impl<T> CoreAction for T where
    T: Fn(&Rc<Core<MachineEnvironment>>, &mpsc::Sender<Result<(), Failure>>)
        + Clone
        + Send
        + 'static
{
}

fn is_same(a: &Spec, b: &Spec) -> bool {
    a.nsid == b.nsid
        && a.identity == b.identity
        && a.read_only == b.read_only
        && a.medium.is_same(&b.medium)
}
