//! Owns the bare loop: one queue pair, commands made beforehand, and no more than the controller needs.

use anyhow::{Context, Result, anyhow, ensure};
use corebay_core::{arena::Arena, dma::DmaRegion, reactor::MachineClock};
use corebay_nvme::{
    emulated::{Emulated, EmulatedDevice, EmulatedRegisters},
    pcie::{DmaWindow, PciDevice, Registers},
    spec::{
        command::{CreateCompletionQueue, CreateSubmissionQueue, SubmissionEntry, nvm},
        completion::CompletionEntry,
        property::{
            ACQ, AQA, ASQ, Aqa, CC, CSTS, Cc, Csts, IOCQES_16, IOSQES_64, cq_head_doorbell,
            sq_tail_doorbell,
        },
    },
};
use zerocopy::IntoBytes;

use super::{BLOCK, Load, Places};

const PAGE: usize = 4096;
const ENTRIES: u16 = 256;
const SQ_ENTRY: usize = size_of::<SubmissionEntry>();
const CQ_ENTRY: usize = size_of::<CompletionEntry>();

/// The dword of a completion that the device writes last, and the phase tag in it.
const LAST_DWORD: usize = 12;
const PHASE: u32 = 1 << 16;

/// Polls within which a controller in memory does what it is told.
const POLLS_MAX: usize = 10_000_000;

/// A queue pair.
struct Pair {
    registers: EmulatedRegisters,
    qid: u16,
    entries: u16,
    sq: DmaRegion,
    cq: DmaRegion,
    tail: u16,
    head: u16,
    phase: bool,
}

impl Pair {
    fn new(
        registers: &EmulatedRegisters,
        (qid, entries): (u16, u16),
        memory: &mut DmaRegion,
    ) -> Option<Self> {
        Some(Self {
            registers: registers.clone(),
            qid,
            entries,
            sq: memory.split_off(usize::from(entries) * SQ_ENTRY)?,
            cq: memory.split_off(usize::from(entries) * CQ_ENTRY)?,
            tail: 0,
            head: 0,
            phase: true,
        })
    }

    fn push(&mut self, entry: &SubmissionEntry) {
        self.sq
            .write(usize::from(self.tail) * SQ_ENTRY, entry.as_bytes());
        self.tail = (self.tail + 1) % self.entries;
    }

    /// The identifier of the next command that completed, if there is one, and how it ended.
    fn next(&mut self) -> Option<(u16, bool)> {
        let at = usize::from(self.head) * CQ_ENTRY;
        let last = self.cq.load_acquire(at + LAST_DWORD);
        if (last & PHASE != 0) != self.phase {
            return None;
        }
        self.head = (self.head + 1) % self.entries;
        if self.head == 0 {
            self.phase = !self.phase;
        }
        Some((last as u16, last >> 17 == 0))
    }

    fn ring(&self) {
        let head = cq_head_doorbell(self.qid, 0);
        self.registers.write32(head, u32::from(self.head));
        let tail = sq_tail_doorbell(self.qid, 0);
        self.registers.write32(tail, u32::from(self.tail));
    }
}

/// A bare loop with its load.
pub struct Bare {
    pair: Pair,
    /// One for each place, made beforehand.
    commands: Vec<SubmissionEntry>,
    places: Places,
    load: Load,
    /// Device and memory stay as long as the loop.
    _device: EmulatedDevice,
    _memory: DmaRegion,
}

impl Bare {
    /// Enables the controller by hand, and puts the first commands in line.
    pub fn start(
        emulated: &Emulated,
        mut arena: Arena,
        load: Load,
        clock: MachineClock,
    ) -> Result<Self> {
        let window = emulated.map(&arena.memory());
        let memory = arena.take(arena.remaining()).and_then(DmaRegion::new);
        let mut memory = memory.context("memory")?;
        let mut device = emulated.device();
        device.set_bus_master(true)?;
        let registers = device.registers();
        let poll = || emulated.poll(clock.now());
        let mut admin = Pair::new(&registers, (0, 16), &mut memory).context("memory")?;
        enable(&admin, window, poll)?;
        let mut pair = Pair::new(&registers, (1, ENTRIES), &mut memory).context("memory")?;
        let create = CreateCompletionQueue {
            qid: 1,
            entries: ENTRIES.into(),
            pc: true,
            ien: false,
            iv: 0,
            address: address(window, &pair.cq)?,
        };
        run(&mut admin, create.to_entry(), poll)?;
        let create = CreateSubmissionQueue {
            qid: 1,
            entries: ENTRIES.into(),
            pc: true,
            qprio: 0,
            cqid: 1,
            address: address(window, &pair.sq)?,
        };
        run(&mut admin, create.to_entry(), poll)?;
        let mut commands = Vec::new();
        for cid in 0..load.depth {
            let command = command(&mut memory, window, load)?;
            commands.push(command.with_cid(cid as u16));
        }
        let mut places = Places::new(1);
        for command in &mut commands {
            command.set_cdw10_11(places.next(load.blocks));
            pair.push(command);
        }
        pair.ring();
        Ok(Self {
            pair,
            commands,
            places,
            load,
            _device: device,
            _memory: memory,
        })
    }

    /// One turn; the I/Os that it completed.
    pub fn turn(&mut self) -> usize {
        let mut completed = 0;
        while let Some((cid, good)) = self.pair.next() {
            assert!(good, "the emulated controller does not fail");
            let command = &mut self.commands[usize::from(cid)];
            command.set_cdw10_11(self.places.next(self.load.blocks));
            self.pair.push(command);
            completed += 1;
        }
        if completed > 0 {
            self.pair.ring();
        }
        completed
    }
}

fn address(window: DmaWindow, memory: &DmaRegion) -> Result<u64> {
    let address = window.translate(memory.address(), memory.len());
    address.ok_or_else(|| anyhow!("memory that is not mapped"))
}

fn enable(admin: &Pair, window: DmaWindow, poll: impl Fn() -> usize) -> Result<()> {
    let registers = &admin.registers;
    let aqa = Aqa::default()
        .with_asqs(admin.entries - 1)
        .with_acqs(admin.entries - 1);
    registers.write32(AQA, aqa.0);
    registers.write64(ASQ, address(window, &admin.sq)?);
    registers.write64(ACQ, address(window, &admin.cq)?);
    let cc = Cc::default()
        .with_iosqes(IOSQES_64)
        .with_iocqes(IOCQES_16)
        .with_en(true);
    registers.write32(CC, cc.0);
    for _ in 0..POLLS_MAX {
        if Csts(registers.read32(CSTS)).rdy() {
            return Ok(());
        }
        poll();
    }
    Err(anyhow!("the controller does not become ready"))
}

/// Runs an admin command to its end.
fn run(admin: &mut Pair, entry: SubmissionEntry, poll: impl Fn() -> usize) -> Result<()> {
    admin.push(&entry);
    admin.ring();
    for _ in 0..POLLS_MAX {
        poll();
        if let Some((_, good)) = admin.next() {
            ensure!(good, "an admin command fails");
            return Ok(());
        }
    }
    Err(anyhow!("an admin command does not end"))
}

/// A command over memory of its own, without its place.
fn command(memory: &mut DmaRegion, window: DmaWindow, load: Load) -> Result<SubmissionEntry> {
    let bytes = load.blocks as usize * BLOCK.bytes();
    let payload = memory.split_off(bytes).context("memory")?;
    let list = memory.split_off(PAGE).context("memory")?;
    let first = address(window, &payload)?;
    let pages = bytes.div_ceil(PAGE);
    let second = match pages {
        1 => 0,
        2 => first + PAGE as u64,
        _ => {
            for page in 1..pages {
                list.store_u64((page - 1) * 8, first + (page * PAGE) as u64);
            }
            address(window, &list)?
        }
    };
    let opcode = if load.write { nvm::WRITE } else { nvm::READ };
    let mut entry = SubmissionEntry::new(opcode, 1);
    entry.set_prp(first, second);
    entry.cdw12.set((load.blocks - 1) as u32);
    Ok(entry)
}
