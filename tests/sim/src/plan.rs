//! What a world is made of, and what goes wrong in it: all drawn from the seed.
//!
//! Invariant: a swarm needs variety more than it needs everything at once, so each seed draws which
//! faults there are at all before it draws how often.

use std::time::Duration;

use corebay_core::{rng::Rng, units::BlockSize};
use corebay_target::{
    core::STANDING_TASKS,
    limits::Limits,
    tcp::{DigestPolicy, TcpOptions},
};

use crate::{
    beneath::{ArrayPlan, Circumstances, DrivePlan, FloorPlan, NamespacePlan, PoolPlan},
    medium::{Latency, MediumFaults, MediumOptions},
    net::NetProfile,
    node::TASKS_OF_TENDER,
    pool::TASKS_OF_POOL,
    workload::COMMANDS,
};

/// The most appliances of a world.
pub const NODES_MAX: usize = 2;

/// Something that the world does to a machine now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// A connection is reset at both ends.
    Reset,
    /// A connection is reset at the target's end alone.
    HalfReset,
    /// One end of a connection sees an end of stream.
    HalfClose,
    /// A host is parted from the network for a while.
    Partition,
    /// The target's process is killed.
    Kill,
    /// The target drains and ends, and starts again.
    Restart,
    /// The target loses its power.
    PowerCut,
    /// A core makes no turn for a while.
    SlowCore,
    /// A disk has no space left for a while.
    DiskFull,
    /// A disk is unplugged; it is back before the target is started again.
    DiskGone,
    /// A host's process ends, and starts again with the same names.
    HostCrash,
    /// A host loses its power, and comes back with the same names.
    HostVanish,
    /// A namespace is detached, or one that was detached attached again, as a reload does it.
    Reload,
    /// A member of an array is unplugged, or one that was is plugged in again, or a blank one in its
    /// place.
    MemberGone,
    /// An array is scrubbed.
    Scrub,
    /// An NVMe drive's controller reports a fatal status.
    DriveFatal,
    /// An NVMe drive is pulled out; it is back before the target is started again.
    DriveGone,
    /// What an appliance offers beside its namespaces is changed.
    Offer,
}

impl Mischief {
    /// All but the change of an offer, which only worlds have where hosts ask for it.
    const ALL: [Self; 17] = [
        Self::Reset,
        Self::HalfReset,
        Self::HalfClose,
        Self::Partition,
        Self::Kill,
        Self::Restart,
        Self::PowerCut,
        Self::SlowCore,
        Self::DiskFull,
        Self::DiskGone,
        Self::HostCrash,
        Self::HostVanish,
        Self::Reload,
        Self::MemberGone,
        Self::Scrub,
        Self::DriveFatal,
        Self::DriveGone,
    ];

    /// True where a connection may be lost by it.
    fn disturbs(&self) -> bool {
        !matches!(
            self,
            Self::SlowCore
                | Self::DiskFull
                | Self::Reload
                | Self::MemberGone
                | Self::Scrub
                | Self::DriveFatal
                | Self::Offer
        )
    }
}

/// The target.
#[derive(Clone, Copy, Debug)]
pub struct TargetPlan {
    /// Its cores.
    pub cores: usize,
    /// Buffer memory of each core.
    pub memory_bytes: usize,
    /// Task slots of each core.
    pub task_slots: usize,
    /// Its limits.
    pub limits: Limits,
    /// Its NVMe/TCP options.
    pub tcp: TcpOptions,
}

/// An appliance: a machine of its own, with one subsystem.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// The target on it.
    pub target: TargetPlan,
    /// What its namespaces lie on.
    pub floors: Vec<FloorPlan>,
    /// Its namespaces, from NSID 1.
    pub namespaces: Vec<NamespacePlan>,
}

/// What the hosts do.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadPlan {
    /// How often each command is sent: see [`COMMANDS`](crate::workload::COMMANDS).
    pub weights: [u64; COMMANDS],
    /// Half of the commands meet on so many blocks.
    pub hot_blocks: u64,
    /// All commands meet there.
    pub only_hot: bool,
    /// Commands in flight are aborted now and then.
    pub aborts: bool,
    /// Hosts ask their controllers all kinds of things meanwhile.
    pub admin: bool,
    /// Hosts reset their controllers under I/O.
    pub resets: bool,
}

/// What becomes of a host's commands when its connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLoss {
    /// They fail, and the host connects anew by itself.
    Fail,
    /// They fail, and the host gives its controller up and makes a new one.
    GiveUp,
    /// They are sent again after so long.
    Replay(Duration),
}

/// A host.
#[derive(Clone, Copy, Debug)]
pub struct HostPlan {
    /// The appliances that it connects to.
    pub nodes: [bool; NODES_MAX],
    /// Tasks that send one command after the other, for each appliance.
    pub workers: usize,
    /// Commands of each.
    pub commands: usize,
    /// I/O queues.
    pub io_queues: u16,
    /// Commands in flight on one queue.
    pub depth: u16,
    /// Header and data digests.
    pub digests: (bool, bool),
    /// Keep Alive Timeout.
    pub keep_alive: Duration,
    /// How long a command may take.
    pub command_timeout: Duration,
    /// What becomes of commands when the connection is lost.
    pub after_loss: AfterLoss,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The appliances.
    pub nodes: Vec<NodePlan>,
    /// What goes wrong on their media.
    pub medium_faults: MediumFaults,
    /// What the hosts do.
    pub workload: WorkloadPlan,
    /// The hosts.
    pub hosts: Vec<HostPlan>,
    /// The network.
    pub network: NetProfile,
    /// What the world does now and then; nothing where empty.
    pub mischief: Vec<Mischief>,
    /// The mean time between two of them.
    pub mischief_every: Duration,
    /// The longest time that passes in a turn of a core, in nanoseconds.
    pub turn_nanos_max: u64,
    /// The power fails once more before the last check.
    pub cut_at_end: bool,
    /// The power fails at a point that is not drawn.
    pub cut_by_hand: bool,
    /// Hosts keep discovery controllers.
    pub discovers: bool,
}

impl Plan {
    /// Draws a world from `seed`.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let rng = &mut Rng::from_seed(seed ^ 0x0070_6c61_6e00);
        let mut mischief: Vec<_> = Mischief::ALL
            .into_iter()
            .filter(|_| rng.once_in(3))
            .collect();
        // In some, nothing but storage fails: there no command may be left without an answer.
        if rng.once_in(4) {
            mischief.retain(|kind| !kind.disturbs());
        }
        // What is not durable is seen only where the power fails.
        if rng.once_in(4) && !mischief.contains(&Mischief::PowerCut) {
            mischief.push(Mischief::PowerCut);
        }
        // A third of the worlds is calm, to see that nothing goes wrong by itself.
        if rng.once_in(3) {
            mischief.clear();
        }
        let calm = mischief.is_empty();
        let nodes = if rng.once_in(4) { NODES_MAX } else { 1 };
        let medium_faults = match calm {
            true => MediumFaults::default(),
            false => draw_medium_faults(rng),
        };
        let cut_at_end = rng.once_in(2);
        let ends = [Mischief::Kill, Mischief::Restart, Mischief::PowerCut];
        let circumstances = Circumstances {
            calm,
            cuts: cut_at_end || ends.iter().any(|end| mischief.contains(end)),
            faults: medium_faults,
        };
        let mut plan = Self {
            nodes: (0..nodes).map(|_| draw_node(rng, &circumstances)).collect(),
            workload: draw_workload(rng, calm),
            medium_faults,
            hosts: Vec::new(),
            network: draw_network(rng, calm),
            mischief,
            mischief_every: millis(pick(rng, &[2, 10, 40, 150])),
            turn_nanos_max: pick(rng, &[500, 3_000, 20_000]),
            cut_at_end,
            cut_by_hand: false,
            discovers: Rng::from_seed(seed ^ 0x0064_6973_6300).once_in(4),
        };
        if plan.discovers {
            plan.mischief.push(Mischief::Offer);
        }
        if !plan.has_only_disks() {
            plan.workload.weights[SPOIL] = 0;
        }
        if Rng::from_seed(seed ^ 0x006c_6174_6500).once_in(10) {
            plan.delay();
        } else if Rng::from_seed(seed ^ 0x0074_7769_6e00).once_in(12) {
            plan.share(rng, &circumstances);
        }
        plan.drop_idle_mischief();
        let hosts = 1 + rng.below(3);
        plan.hosts = (0..hosts).map(|_| draw_host(rng, &plan)).collect();
        if plan.is_calm() {
            // Nothing may take so long that a host gives it up.
            for floor in plan.nodes.iter_mut().flat_map(|node| &mut node.floors) {
                floor.hurry(CALM_TAIL_MAX);
            }
        }
        // Somebody uses each of them.
        plan.hosts[0].nodes = [true, plan.nodes.len() > 1];
        plan
    }

    /// Hosts lose their connections, and come back while their disks still work for what was lost: what they
    /// write to the same block then must not be overtaken.
    fn delay(&mut self) {
        for floor in self.nodes.iter_mut().flat_map(|node| &mut node.floors) {
            if let FloorPlan::Disk(medium) = floor {
                medium.latency.tail_one_in = 3;
                medium.latency.tail = millis(400);
            }
        }
        self.workload.hot_blocks = 2;
        self.workload.only_hot = true;
        for kind in [Mischief::Reset, Mischief::HostCrash] {
            if !self.mischief.contains(&kind) {
                self.mischief.push(kind);
            }
        }
        self.mischief_every = millis(40);
    }

    /// Hosts read what they write and deallocate at the same time, on slow disks, while a clone that shares
    /// these blocks with nobody else is written.
    fn share(&mut self, rng: &mut Rng, around: &Circumstances) {
        let floor = FloorPlan::Pool(PoolPlan::draw_shared(rng, around));
        self.nodes.truncate(1);
        self.nodes[0].target.task_slots += TASKS_OF_POOL;
        self.nodes[0].namespaces = vec![floor.namespace(0)];
        self.nodes[0].floors = vec![floor];
        self.workload.weights = [50, 15, 5, 2, 3, 10, 15, 0, 0, 0, 0];
        self.workload.hot_blocks = pick(rng, &[1, 1, 2]);
        self.workload.only_hot = true;
    }

    /// A short world without faults on one disk, array or pool with a volatile cache, for cutting its
    /// power at every point.
    #[must_use]
    pub fn script(seed: u64, script: Script) -> Self {
        let mut plan = Self::draw(seed);
        let rng = &mut Rng::from_seed(seed);
        plan.mischief.clear();
        plan.medium_faults = MediumFaults::default();
        plan.network.stall_one_in = 0;
        plan.workload = draw_workload(rng, true);
        plan.nodes.truncate(1);
        plan.workload.weights[SPOIL] = 0;
        let floor = match script {
            Script::Disk => FloorPlan::Disk(script_medium(16)),
            Script::Array => FloorPlan::Array(ArrayPlan::script(rng, script_medium(0))),
            Script::Pool => FloorPlan::Pool(PoolPlan::script(script_medium(0))),
        };
        plan.nodes[0].target.task_slots += TASKS_OF_POOL;
        plan.nodes[0].namespaces = vec![floor.namespace(0)];
        plan.nodes[0].floors = vec![floor];
        plan.hosts = vec![draw_host(rng, &plan)];
        plan.hosts[0].nodes = [true, false];
        plan.hosts[0].workers = 3;
        plan.hosts[0].commands = 8;
        plan.hosts[0].after_loss = AfterLoss::Fail;
        plan.cut_by_hand = true;
        plan.discovers = false;
        plan.cut_at_end = false;
        plan
    }

    /// True where no connection may be lost, as nothing disturbs any.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let disturbed = self.mischief.iter().any(Mischief::disturbs) || self.cut_by_hand;
        // A drive that loses too many admin commands is given up, and the target started anew in the end.
        let sound = self.floors().all(FloorPlan::has_sound_drives);
        !disturbed && sound && self.medium_faults.stuck == 0 && !self.workload.resets
    }

    /// What the namespaces of all appliances lie on.
    pub fn floors(&self) -> impl Iterator<Item = &FloorPlan> {
        self.nodes.iter().flat_map(|node| &node.floors)
    }

    fn has_only_disks(&self) -> bool {
        self.floors()
            .all(|floor| matches!(floor, FloorPlan::Disk(_)))
    }

    /// True where namespaces come and go.
    #[must_use]
    pub fn reloads(&self) -> bool {
        self.mischief.contains(&Mischief::Reload)
    }

    /// True where commands to this namespace of this appliance may fail on a medium.
    #[must_use]
    pub fn media_fail(&self, node: usize, nsid: u32) -> bool {
        let node = &self.nodes[node];
        let floor = &node.floors[node.namespaces[nsid as usize - 1].floor];
        let any = |kinds: &[Mischief]| kinds.iter().any(|kind| self.mischief.contains(kind));
        floor.may_fail(&self.medium_faults)
            || self.workload.weights[SPOIL] != 0
            || matches!(floor, FloorPlan::Disk(_)) && any(&[Mischief::DiskFull, Mischief::DiskGone])
            || floor.drive().is_some() && any(&[Mischief::DriveGone])
    }

    /// True where blocks of this namespace may be lost though nobody does anything to them.
    #[must_use]
    pub fn loses_by_itself(&self, node: usize, nsid: u32) -> bool {
        let node = &self.nodes[node];
        let floor = &node.floors[node.namespaces[nsid as usize - 1].floor];
        let plain = matches!(floor, FloorPlan::Disk(_) | FloorPlan::Drive(_));
        // An array writes blocks by itself, also those that nobody has written.
        let array = floor.array().is_some() && floor.may_fail(&MediumFaults::default());
        array || plain && self.medium_faults.latent_read != 0
    }

    /// True where a read of this namespace may fail although the block is not lost.
    #[must_use]
    pub fn reads_fail(&self, node: usize, nsid: u32) -> bool {
        let node = &self.nodes[node];
        let floor = &node.floors[node.namespaces[nsid as usize - 1].floor];
        let plain = matches!(floor, FloorPlan::Disk(_) | FloorPlan::Drive(_));
        plain && self.medium_faults.transient_read != 0 || !floor.has_sound_drives()
    }

    /// A namespace of this appliance whose commands may fail so: what is asked of all of them may, too.
    #[must_use]
    pub fn weak_namespace(&self, node: usize) -> Option<(usize, u32)> {
        let mut all = (1u32..).take(self.nodes[node].namespaces.len());
        let weak = all.find(|nsid| self.media_fail(node, *nsid));
        weak.map(|nsid| (node, nsid))
    }

    /// Drops what strikes nothing that there is: it would only take the place of something else.
    fn drop_idle_mischief(&mut self) {
        let disks = self.has(|floor| matches!(floor, FloorPlan::Disk(_)));
        let drives = self.has(|floor| floor.drive().is_some());
        let arrays = self.has(|floor| floor.array().is_some());
        self.mischief.retain(|kind| match kind {
            Mischief::DiskFull | Mischief::DiskGone => disks,
            Mischief::DriveFatal | Mischief::DriveGone => drives,
            Mischief::MemberGone | Mischief::Scrub => arrays,
            _ => true,
        });
    }

    fn has(&self, kind: impl Fn(&FloorPlan) -> bool) -> bool {
        self.floors().any(kind)
    }
}

/// What a script works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// A disk.
    Disk,
    /// An array.
    Array,
    /// A pool.
    Pool,
}

impl Script {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Disk, Self::Array, Self::Pool];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Array => "array",
            Self::Pool => "pool",
        }
    }
}

/// A disk that a script is cut on.
fn script_medium(blocks: u64) -> MediumOptions {
    MediumOptions {
        block_size: BlockSize::B512,
        blocks,
        volatile_cache: true,
        tears: false,
        used: false,
        latency: Latency {
            min: Duration::from_micros(20),
            spread: Duration::from_micros(50),
            tail_one_in: 0,
            tail: Duration::ZERO,
            slow_read_one_in: 0,
        },
    }
}

/// One of several.
pub fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[usize::try_from(rng.below(of.len() as u64)).unwrap_or(0)]
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn draw_node(rng: &mut Rng, circumstances: &Circumstances) -> NodePlan {
    let mut target = draw_target(rng);
    let floors: Vec<_> = match rng.once_in(2) {
        true => draw_media(rng).into_iter().map(FloorPlan::Disk).collect(),
        false => draw_floors(rng, circumstances),
    };
    let pools = floors
        .iter()
        .filter(|floor| matches!(floor, FloorPlan::Pool(_)));
    // What the appliance itself keeps is not taken from the commands' few.
    target.task_slots += STANDING_TASKS + floors.len() * TASKS_OF_TENDER;
    target.task_slots += pools.count() * TASKS_OF_POOL;
    let namespaces = floors.iter().enumerate();
    NodePlan {
        target,
        namespaces: namespaces.map(|(at, floor)| floor.namespace(at)).collect(),
        floors,
    }
}

/// Floors of which at least one is more than a disk.
fn draw_floors(rng: &mut Rng, circumstances: &Circumstances) -> Vec<FloorPlan> {
    let array = |rng: &mut Rng| FloorPlan::Array(ArrayPlan::draw(rng, circumstances));
    let drive = |rng: &mut Rng| FloorPlan::Drive(DrivePlan::draw(rng, circumstances));
    let pool = |rng: &mut Rng| FloorPlan::Pool(PoolPlan::draw(rng, circumstances));
    let mut floors = vec![match rng.below(6) {
        0 | 1 => drive(rng),
        2 | 3 => array(rng),
        _ => pool(rng),
    }];
    match rng.below(8) {
        0 => floors.push(FloorPlan::Disk(draw_media(rng)[0])),
        1 => floors.push(array(rng)),
        2 => floors.push(drive(rng)),
        3 => floors.push(pool(rng)),
        _ => {}
    }
    floors
}

/// The longest tail of a medium's latency where no command may time out.
const CALM_TAIL_MAX: Duration = Duration::from_millis(50);

/// The place of Write Uncorrectable among the weights.
const SPOIL: usize = 10;

fn draw_workload(rng: &mut Rng, calm: bool) -> WorkloadPlan {
    // In the order of the commands: the usual mix, what hosts do to the same few blocks, and all.
    let usual = [35, 29, 10, 6, 10, 5, 5, 0, 0, 0, 0];
    let duel = [8, 25, 5, 2, 55, 3, 2, 0, 0, 0, 0];
    let all = [20, 15, 8, 6, 10, 8, 8, 10, 8, 7, 0];
    // Nobody makes anything durable: that is left to whoever has to.
    let lazy = [20, 45, 0, 0, 10, 10, 10, 2, 3, 0, 0];
    let copies = [5, 15, 3, 2, 45, 3, 2, 3, 22, 0, 0];
    let mut weights = pick(rng, &[usual, duel, copies, all, all, lazy]);
    if rng.once_in(8) {
        weights[SPOIL] = 3;
    }
    WorkloadPlan {
        weights,
        hot_blocks: pick(rng, &[1, 2, 6, 6]),
        only_hot: rng.once_in(5),
        aborts: rng.once_in(3),
        admin: rng.once_in(2),
        resets: !calm && rng.once_in(4),
    }
}

fn draw_target(rng: &mut Rng) -> TargetPlan {
    let digest = [DigestPolicy::Allow, DigestPolicy::Allow, DigestPolicy::Off];
    let limits = Limits {
        transfer_bytes_max: pick(rng, &[64 << 10, 256 << 10, 1 << 20]),
        in_capsule_bytes: pick(rng, &[1024, 4096, 8192]),
        queue_depth_max: pick(rng, &[4, 32, 128]),
        io_queues_max: pick(rng, &[1, 4, 16]),
        connections_max: 64,
        stall_timeout: Duration::from_secs(10),
    };
    TargetPlan {
        cores: pick(rng, &[1, 2, 3]),
        memory_bytes: 8 << 20,
        task_slots: pick(rng, &[72, 96, 256]),
        limits,
        tcp: TcpOptions {
            h2c_data_bytes_max: pick(rng, &[4096, 64 << 10, 1 << 20]),
            header_digest: pick(rng, &digest),
            data_digest: pick(rng, &digest),
        },
    }
}

fn draw_media(rng: &mut Rng) -> Vec<MediumOptions> {
    let count = 1 + rng.below(2);
    let tears = rng.once_in(4);
    let latency = Latency {
        min: Duration::from_micros(pick(rng, &[1, 20, 100])),
        spread: Duration::from_micros(pick(rng, &[0, 50, 500, 5_000])),
        tail_one_in: pick(rng, &[0, 0, 20]),
        tail: Duration::from_millis(pick(rng, &[5, 50, 400])),
        slow_read_one_in: 0,
    };
    let medium = |rng: &mut Rng| MediumOptions {
        block_size: pick(rng, &[BlockSize::B512, BlockSize::B512, BlockSize::B4096]),
        blocks: pick(rng, &[16, 64, 200]),
        volatile_cache: !rng.once_in(3),
        tears,
        used: false,
        latency,
    };
    (0..count).map(|_| medium(rng)).collect()
}

fn draw_medium_faults(rng: &mut Rng) -> MediumFaults {
    let mut some = |one_in: u64| if rng.once_in(3) { one_in } else { 0 };
    MediumFaults {
        transient_read: some(100),
        latent_read: some(300),
        write: some(50),
        stuck: some(100),
        stuck_for: millis(3_000),
        // Nothing above a bare disk would find the silent ones.
        ..MediumFaults::default()
    }
}

fn draw_network(rng: &mut Rng, calm: bool) -> NetProfile {
    let stalls = !calm && rng.once_in(3);
    NetProfile {
        latency_min: Duration::from_micros(pick(rng, &[1, 10, 100])),
        latency_spread: Duration::from_micros(pick(rng, &[0, 20, 300])),
        segment_max: pick(rng, &[64, 1448, 9000, 1 << 20]),
        room: pick(rng, &[2048, 16 << 10, 256 << 10]),
        short_one_in: pick(rng, &[0, 0, 3, 20]),
        stall_one_in: if stalls { 200 } else { 0 },
        stall: millis(80),
    }
}

fn draw_host(rng: &mut Rng, plan: &Plan) -> HostPlan {
    let keep_alive = millis(pick(rng, &[400, 1_000, 4_000]));
    let stuck = plan.medium_faults.stuck != 0;
    // What is sent again must not be overtaken by its first copy: by then the target has given the
    // old association up (its Keep Alive Timeout) and its disks have answered.
    let replay = AfterLoss::Replay(keep_alive * 2 + millis(500));
    let after_loss = match rng.below(3) {
        0 => AfterLoss::Fail,
        1 if !stuck => replay,
        _ => AfterLoss::GiveUp,
    };
    // With two appliances a host uses the one, the other or both.
    let nodes = match (plan.nodes.len(), rng.below(3)) {
        (1, _) | (_, 0) => [true, false],
        (_, 1) => [false, true],
        _ => [true, true],
    };
    HostPlan {
        nodes,
        workers: match plan.has(FloorPlan::has_twins) {
            // Somebody always reads what another is changing.
            true => 6,
            false => pick(rng, &[1, 3, 6]),
        },
        commands: pick(rng, &[8, 15, 30]),
        io_queues: pick(rng, &[1, 2, 4]),
        depth: pick(rng, &[2, 3, 16]),
        digests: (rng.once_in(2), rng.once_in(2)),
        keep_alive,
        command_timeout: millis(pick(rng, &[1_500, 4_000])),
        after_loss,
    }
}
