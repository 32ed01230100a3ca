//! SIGHUP: reads the configuration again and makes the running appliance what it says.
//!
//! Subsystems, namespaces, allowed hosts and referrals change while everything else goes on; hosts
//! learn of it by asynchronous events. What is fixed for the life of the process (cores, memory,
//! transport limits, the data folder, the names of a subsystem) is compared, and said to need a
//! restart; a file with other listeners is refused.
//!
//! Invariants:
//! - A file with a mistake changes nothing.
//! - New disks are all opened before the first change, so a disk that cannot be opened changes
//!   nothing either.
//! - A disk that stays is not opened a second time: its namespace keeps its medium.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    time::Duration,
};

use corebay_conf::{Appliance, appliance::Subsystem as Configured};
use corebay_core::{mesh::Port, units::CoreId};
use corebay_target::{
    controller::Event,
    core::Message,
    fabrics::{end_association, report},
    namespace::NamespaceSpec,
    subsystem::{Registry, Subsystem},
};
use tracing::{info, warn};

use super::{
    environment::{MachineEnvironment, Medium},
    media::{self, Media},
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
            "[[listener]] has changed, which takes a restart; nothing was changed",
            "restart corebay, or put the listeners back as they were",
        ));
    }
    say_what_needs_a_restart(old, new);
    running.media.open(new, state)?;
    let wanted: BTreeSet<_> = new.subsystems().iter().map(|s| s.nqn.clone()).collect();
    for subsystem in running.registry.subsystems() {
        if !wanted.contains(&subsystem.names.nqn) {
            info!(subsystem = %subsystem.names.nqn, "removed");
            running.registry.remove_subsystem(subsystem.id);
            running.end_controllers(&subsystem, |_| true);
            for namespace in subsystem.namespaces() {
                running.detach(&subsystem, namespace.nsid)?;
            }
        }
    }
    for configured in new.subsystems() {
        match running.registry.find(&configured.nqn) {
            Some(subsystem) => running.change(&subsystem, configured, new, state)?,
            None => {
                info!(subsystem = %configured.nqn, "added");
                let subsystem = media::add_subsystem(running.registry, configured, state);
                running.change(&subsystem, configured, new, state)?;
            }
        }
    }
    running.media.keep_only(new);
    running.registry.set_referrals(referrals(new));
    running.tell_discovery();
    state.save()
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

impl Running<'_> {
    /// Brings one subsystem to what is configured.
    fn change(
        &mut self,
        subsystem: &Arc<Subsystem<Medium>>,
        configured: &Configured,
        new: &Appliance,
        state: &mut State,
    ) -> Result<(), Failure> {
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
        let specs: Vec<Spec> = configured
            .namespaces
            .iter()
            .map(|namespace| self.media.spec(new, configured, namespace, state))
            .collect();
        for present in subsystem.namespaces() {
            if !specs.iter().any(|spec| is_same(spec, &present)) {
                info!(subsystem = %configured.nqn, nsid = present.nsid, "namespace removed");
                self.detach(subsystem, present.nsid)?;
                self.tell(subsystem, present.nsid);
            }
        }
        for spec in specs {
            if subsystem.namespace(spec.nsid).is_none() {
                info!(subsystem = %configured.nqn, nsid = spec.nsid, "namespace added");
                self.attach(subsystem, &spec)?;
                self.tell(subsystem, spec.nsid);
            }
        }
        Ok(())
    }

    fn attach(&self, subsystem: &Arc<Subsystem<Medium>>, spec: &Spec) -> Result<(), Failure> {
        let (id, nsid) = (subsystem.id, spec.nsid);
        let on_core = spec.clone();
        self.on_each_core(move |core, answer| {
            let _ = answer.send(core.attach(id, on_core.clone()).map_err(|error| {
                Failure::new(
                    format!("cannot open the disk of namespace {nsid}: {error}"),
                    "",
                )
            }));
        })?;
        // Only now is it shown: every core can serve it.
        subsystem.add_namespace(spec.clone());
        Ok(())
    }

    fn detach(&self, subsystem: &Arc<Subsystem<Medium>>, nsid: u32) -> Result<(), Failure> {
        subsystem.remove_namespace(nsid);
        let id = subsystem.id;
        self.on_each_core(move |core, answer| {
            core.table(id).detach(nsid);
            let _ = answer.send(Ok(()));
        })
    }

    /// Runs `action` on each core and waits for their answers.
    fn on_each_core(
        &self,
        action: impl Fn(
            &std::rc::Rc<corebay_target::core::Core<MachineEnvironment>>,
            &mpsc::Sender<Result<(), Failure>>,
        ) + Clone
        + Send
        + 'static,
    ) -> Result<(), Failure> {
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
    fn tell(&self, subsystem: &Arc<Subsystem<Medium>>, nsid: u32) {
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
        self.port.send(
            CoreId(0),
            Box::new(|core| {
                for controller in core.registry.discovery().controllers() {
                    report(core, &controller, Event::DiscoveryLogChanged);
                }
            }),
        );
    }
}

fn is_same(a: &Spec, b: &Spec) -> bool {
    a.nsid == b.nsid
        && a.identity == b.identity
        && a.read_only == b.read_only
        && a.medium.is_same(&b.medium)
}
