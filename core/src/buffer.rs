//! Buffers of one core: a buddy allocator over a region of the arena, and counted windows on what
//! it hands out.
//!
//! Invariants:
//! - A block is free only when no [`Buffer`] and no [`DevicePin`] refers to it: memory that a
//!   device may still write is never handed out again.
//! - Safe code sees a window's bytes only while no device writes them ([`Buffer::bytes`]), and writes
//!   them only while nothing else looks at them ([`Buffer::bytes_mut`]). A violation is a bug in
//!   corebay and panics. Windows of one block that do not overlap are independent of each other.
//! - Whoever waits for a large block is not overtaken by small ones, so it gets its block once
//!   enough of what is in flight has ended.
//! - Allocating and freeing take no memory and, over all calls, O(orders) time: a block that is
//!   freed is kept whole for the next of its size, and merged with its neighbours only once some
//!   request finds nothing else.

use std::{
    cell::{Cell, RefCell},
    fmt,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    rc::Rc,
};

use crate::{
    arena::{ArenaMemory, Region},
    sync::FifoWait,
};

/// The smallest block, and the alignment of every block.
pub const BLOCK_BYTES_MIN: usize = 4096;

/// The largest block: the most that one command may transfer.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;

const ORDERS: usize = (BLOCK_BYTES_MAX / BLOCK_BYTES_MIN).ilog2() as usize + 1;
const NONE: u32 = u32::MAX;

/// Uses of windows that a pool has room for before their table grows.
const USES: usize = 1024;

/// The free blocks of each size that are kept whole.
const WHOLE_MAX: usize = 256;

/// The state of one page of [`BLOCK_BYTES_MIN`], and of the block that begins with it.
#[derive(Clone, Copy)]
struct Page {
    order: u8,
    /// Heads a block on a free list.
    free: bool,
    /// Those of the block's uses that change bytes.
    changing: u16,
    /// The first of the block's uses in the table.
    uses: u32,
    handles: u32,
    previous: u32,
    next: u32,
}

/// How somebody uses a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Holds the bytes for looking at.
    Look,
    /// Holds the bytes for writing.
    Change,
    /// A device reads them.
    DeviceReads,
    /// A device writes them.
    DeviceWrites,
}

impl Use {
    fn changes(self) -> bool {
        matches!(self, Self::Change | Self::DeviceWrites)
    }

    /// Why this use cannot begin beside `other` on bytes that both want, if it cannot. Devices are
    /// not kept apart: what two commands do to the same bytes is theirs to know.
    fn refused_by(self, other: Self) -> Option<&'static str> {
        match (self, other) {
            (Self::Change, _) => Some("the block is in use"),
            (Self::Look, Self::Change | Self::DeviceWrites) | (_, Self::Change) => {
                Some("the block is being written")
            }
            (Self::DeviceWrites, Self::Look) => Some("somebody looks at the block"),
            _ => None,
        }
    }
}

/// One use of a window, in the list of its block.
#[derive(Clone, Copy)]
struct InUse {
    by: Use,
    offset: u32,
    len: u32,
    previous: u32,
    next: u32,
}

const UNUSED: Page = Page {
    order: 0,
    free: false,
    changing: 0,
    uses: NONE,
    handles: 0,
    previous: NONE,
    next: NONE,
};

struct Buddies {
    pages: Box<[Page]>,
    heads: [u32; ORDERS],
    /// Free blocks on no free list, last freed last: the memory most likely to be in the cache.
    whole: [Vec<u32>; ORDERS],
    free_bytes: usize,
    uses: Vec<InUse>,
    /// The first free entry of `uses`; they are linked by `next`.
    free_use: u32,
}

struct Shared {
    region: Region,
    buddies: RefCell<Buddies>,
    waiters: FifoWait,
    lowest_free_bytes: Cell<usize>,
}

/// The buffers of one core; clones name the same pool.
#[derive(Clone)]
pub struct BufferPool {
    shared: Rc<Shared>,
}

impl BufferPool {
    /// A pool over `region`, with room for `waiters` tasks that wait for a buffer.
    #[must_use]
    pub fn new(region: Region, waiters: usize) -> Self {
        let buddies = Buddies::over(region.len());
        let lowest = Cell::new(buddies.free_bytes);
        let shared = Shared {
            region,
            buddies: RefCell::new(buddies),
            waiters: FifoWait::new(waiters),
            lowest_free_bytes: lowest,
        };
        Self {
            shared: Rc::new(shared),
        }
    }

    /// The pool's memory, once nobody else holds the pool or a buffer of it.
    ///
    /// # Errors
    /// Gives the pool back where somebody does.
    pub fn reclaim(self) -> Result<Region, Self> {
        // Buffers, and pins of them, hold the pool too.
        match Rc::try_unwrap(self.shared) {
            Ok(shared) => Ok(shared.region),
            Err(shared) => Err(Self { shared }),
        }
    }

    /// A buffer of `len` bytes, waiting for it in turn. Its content is what the block's last user
    /// left. `len` is 1 to [`BLOCK_BYTES_MAX`].
    pub async fn allocate(&self, len: usize) -> Buffer {
        self.shared.waiters.wait_for(|| self.take(len)).await
    }

    /// A buffer of `len` bytes if one is free and nobody waits for one.
    #[must_use]
    pub fn try_allocate(&self, len: usize) -> Option<Buffer> {
        if self.shared.waiters.is_empty() {
            self.take(len)
        } else {
            None
        }
    }

    /// The bytes in free blocks.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.shared.buddies.borrow().free_bytes
    }

    /// The bytes of all blocks, free or not.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.shared.region.len() / BLOCK_BYTES_MIN * BLOCK_BYTES_MIN
    }

    /// The fewest bytes that were ever free.
    #[must_use]
    pub fn lowest_free_bytes(&self) -> usize {
        self.shared.lowest_free_bytes.get()
    }

    /// The tasks that wait for a buffer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.waiters.len()
    }

    /// The memory that all buffers lie in, to be registered with a device: address and bytes.
    #[must_use]
    pub fn memory(&self) -> (NonNull<u8>, usize) {
        (self.shared.region.base(), self.shared.region.len())
    }

    /// The memory that all buffers lie in, kept mapped as long as the value lives.
    #[must_use]
    pub fn arena_memory(&self) -> ArenaMemory {
        self.shared.region.memory()
    }

    fn take(&self, len: usize) -> Option<Buffer> {
        assert!(
            (1..=BLOCK_BYTES_MAX).contains(&len),
            "a buffer of {len} bytes was asked for, {BLOCK_BYTES_MAX} is the most"
        );
        let mut buddies = self.shared.buddies.borrow_mut();
        let page = buddies.allocate(order_for(len))?;
        let lowest = self.shared.lowest_free_bytes.get().min(buddies.free_bytes);
        self.shared.lowest_free_bytes.set(lowest);
        drop(buddies);
        let len = u32::try_from(len).expect("at most BLOCK_BYTES_MAX");
        Some(Buffer {
            pool: self.shared.clone(),
            page,
            offset: 0,
            len,
        })
    }
}

/// The bytes of the block that a buffer of `len` bytes takes.
#[must_use]
pub fn block_bytes(len: usize) -> usize {
    BLOCK_BYTES_MIN << order_for(len)
}

fn order_for(len: usize) -> usize {
    len.div_ceil(BLOCK_BYTES_MIN).next_power_of_two().ilog2() as usize
}

impl Buddies {
    fn over(bytes: usize) -> Self {
        let count = u32::try_from(bytes / BLOCK_BYTES_MIN).expect("fewer than 2^32 pages");
        let mut buddies = Self {
            pages: vec![UNUSED; count as usize].into(),
            heads: [NONE; ORDERS],
            whole: std::array::from_fn(|_| Vec::with_capacity(WHOLE_MAX)),
            free_bytes: 0,
            uses: Vec::with_capacity(USES),
            free_use: NONE,
        };
        let mut page = 0;
        while page < count {
            // The largest block that is aligned here and still fits.
            let fits = (count - page).ilog2() as usize;
            let aligned = if page == 0 {
                ORDERS - 1
            } else {
                page.trailing_zeros() as usize
            };
            let order = fits.min(aligned).min(ORDERS - 1);
            buddies.push_free(page, order);
            page += 1 << order;
        }
        buddies
    }

    fn allocate(&mut self, order: usize) -> Option<u32> {
        let page = match self.whole[order].pop() {
            Some(page) => {
                self.free_bytes -= BLOCK_BYTES_MIN << order;
                page
            }
            None => self.split(order).or_else(|| {
                self.merge_all();
                self.split(order)
            })?,
        };
        let entry = &mut self.pages[page as usize];
        assert!(
            !entry.free && entry.handles == 0 && entry.uses == NONE,
            "a free block was in use or on a free list"
        );
        entry.order = order_byte(order);
        entry.handles = 1;
        Some(page)
    }

    /// Takes a block off the free lists, of this size or cut from a larger one.
    fn split(&mut self, order: usize) -> Option<u32> {
        let found = (order..ORDERS).find(|&o| self.heads[o] != NONE)?;
        let page = self.heads[found];
        self.unlink(page);
        for smaller in (order..found).rev() {
            self.push_free(page + (1 << smaller), smaller);
        }
        Some(page)
    }

    fn free(&mut self, page: u32) {
        let order = self.pages[page as usize].order as usize;
        if self.whole[order].len() < WHOLE_MAX {
            self.whole[order].push(page);
            self.free_bytes += BLOCK_BYTES_MIN << order;
        } else {
            self.merge(page, order);
        }
    }

    /// Merges all blocks that were kept whole with their neighbours.
    fn merge_all(&mut self) {
        for order in 0..ORDERS {
            while let Some(page) = self.whole[order].pop() {
                self.free_bytes -= BLOCK_BYTES_MIN << order;
                self.merge(page, order);
            }
        }
    }

    /// Puts a block on the free lists, together with its neighbours that are there.
    fn merge(&mut self, mut page: u32, mut order: usize) {
        while order + 1 < ORDERS {
            let buddy = page ^ (1 << order);
            match self.pages.get(buddy as usize) {
                Some(entry) if entry.free && entry.order as usize == order => {}
                _ => break,
            }
            self.unlink(buddy);
            page = page.min(buddy);
            order += 1;
        }
        self.push_free(page, order);
    }

    /// Enters a use of a window, if it goes together with the others of the same bytes.
    fn begin_use(&mut self, window: &Buffer, by: Use) -> u32 {
        let page = self.pages[window.page as usize];
        // Nothing that leaves the bytes as they are can be in the way of the like.
        let mut other = match by.changes() || page.changing > 0 {
            true => page.uses,
            false => NONE,
        };
        while other != NONE {
            let entry = self.uses[other as usize];
            let overlap = entry.offset < window.offset + window.len
                && window.offset < entry.offset + entry.len;
            if overlap && let Some(why) = by.refused_by(entry.by) {
                panic!("{why}");
            }
            other = entry.next;
        }
        let entry = InUse {
            by,
            offset: window.offset,
            len: window.len,
            previous: NONE,
            next: page.uses,
        };
        let index = self.put_use(entry);
        if page.uses != NONE {
            self.uses[page.uses as usize].previous = index;
        }
        let page = &mut self.pages[window.page as usize];
        page.uses = index;
        if by.changes() {
            page.changing = page.changing.checked_add(1).expect("fewer than 2^16 uses");
        }
        index
    }

    fn is_used(&self, window: &Buffer) -> bool {
        let mut other = self.pages[window.page as usize].uses;
        while other != NONE {
            let entry = self.uses[other as usize];
            if entry.offset < window.offset + window.len && window.offset < entry.offset + entry.len
            {
                return true;
            }
            other = entry.next;
        }
        false
    }

    fn put_use(&mut self, entry: InUse) -> u32 {
        if self.free_use == NONE {
            self.uses.push(entry);
            return u32::try_from(self.uses.len() - 1).expect("fewer than 2^32 uses");
        }
        let index = self.free_use;
        self.free_use = self.uses[index as usize].next;
        self.uses[index as usize] = entry;
        index
    }

    fn end_use(&mut self, page: u32, index: u32) {
        let InUse {
            by, previous, next, ..
        } = self.uses[index as usize];
        match previous {
            NONE => self.pages[page as usize].uses = next,
            previous => self.uses[previous as usize].next = next,
        }
        if next != NONE {
            self.uses[next as usize].previous = previous;
        }
        if by.changes() {
            self.pages[page as usize].changing -= 1;
        }
        self.uses[index as usize].next = self.free_use;
        self.free_use = index;
    }

    fn push_free(&mut self, page: u32, order: usize) {
        let next = self.heads[order];
        self.pages[page as usize] = Page {
            order: order_byte(order),
            free: true,
            next,
            ..UNUSED
        };
        if next != NONE {
            self.pages[next as usize].previous = page;
        }
        self.heads[order] = page;
        self.free_bytes += BLOCK_BYTES_MIN << order;
    }

    fn unlink(&mut self, page: u32) {
        let Page {
            order,
            previous,
            next,
            free,
            ..
        } = self.pages[page as usize];
        assert!(free, "a block that is in use was on a free list");
        match previous {
            NONE => self.heads[order as usize] = next,
            previous => self.pages[previous as usize].next = next,
        }
        if next != NONE {
            self.pages[next as usize].previous = previous;
        }
        self.pages[page as usize].free = false;
        self.free_bytes -= BLOCK_BYTES_MIN << order;
    }
}

fn order_byte(order: usize) -> u8 {
    u8::try_from(order).expect("fewer than 256 orders")
}

impl Shared {
    fn with_page<T>(&self, page: u32, look: impl FnOnce(&mut Page) -> T) -> T {
        look(&mut self.buddies.borrow_mut().pages[page as usize])
    }

    fn release(&self, page: u32) {
        let mut buddies = self.buddies.borrow_mut();
        let entry = &mut buddies.pages[page as usize];
        entry.handles -= 1;
        if entry.handles == 0 {
            buddies.free(page);
            drop(buddies);
            self.waiters.notify();
        }
    }
}

/// A window on a block of the arena. Cloning and slicing make further windows on the same block,
/// without copying; the block is freed with its last window.
pub struct Buffer {
    pool: Rc<Shared>,
    page: u32,
    offset: u32,
    len: u32,
}

impl Buffer {
    /// The window's bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True for a window without bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A window on a part of this window. Panics where the range lies outside.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "bytes {range:?} of a window of {} bytes",
            self.len
        );
        let mut part = self.clone();
        part.offset += u32::try_from(range.start).expect("within the window");
        part.len = u32::try_from(range.end - range.start).expect("within the window");
        part
    }

    /// The window's first `len` bytes. Panics where it is shorter.
    #[must_use]
    pub fn truncated(mut self, len: usize) -> Self {
        assert!(len <= self.len(), "{len} of {} bytes", self.len);
        self.len = u32::try_from(len).expect("within the window");
        self
    }

    /// Looks at the bytes. Panics while a device or somebody else writes some of them.
    #[must_use]
    pub fn bytes(&self) -> Bytes<'_> {
        Bytes {
            buffer: self,
            using: self.begin_use(Use::Look),
        }
    }

    /// Gives the window up for looking at its bytes only, until that is dropped. Panics while a
    /// device or somebody else writes some of them.
    #[must_use]
    pub fn freeze(self) -> Frozen {
        Frozen {
            using: self.begin_use(Use::Look),
            buffer: self,
        }
    }

    /// Writes the bytes. Panics while a device uses some of them or somebody else looks at them.
    #[must_use]
    pub fn bytes_mut(&mut self) -> BytesMut<'_> {
        BytesMut {
            using: self.begin_use(Use::Change),
            buffer: self,
        }
    }

    /// Hands the window to a device: its block cannot be freed, nor the window be written or, where
    /// the device writes it, looked at until the pin is dropped.
    #[must_use]
    pub fn pin(&self, direction: Direction) -> DevicePin {
        let by = match direction {
            Direction::FromDevice => Use::DeviceWrites,
            Direction::ToDevice => Use::DeviceReads,
        };
        DevicePin {
            using: self.begin_use(by),
            buffer: self.clone(),
        }
    }

    /// True while anybody, a device among others, uses some of the window's bytes.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.pool.buddies.borrow().is_used(self)
    }

    /// True where both are windows on the same block.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.pool, &other.pool) && self.page == other.page
    }

    /// True while others have windows on the same block.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.pool.buddies.borrow().pages[self.page as usize].handles > 1
    }

    fn begin_use(&self, by: Use) -> u32 {
        self.pool.buddies.borrow_mut().begin_use(self, by)
    }

    fn end_use(&self, using: u32) {
        self.pool.buddies.borrow_mut().end_use(self.page, using);
    }

    fn start(&self) -> *mut u8 {
        let at = self.page as usize * BLOCK_BYTES_MIN + self.offset as usize;
        self.pool.region.base().as_ptr().wrapping_add(at)
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        self.pool.with_page(self.page, |page| {
            page.handles = page
                .handles
                .checked_add(1)
                .expect("fewer than 2^32 windows");
        });
        Self {
            pool: self.pool.clone(),
            page: self.page,
            offset: self.offset,
            len: self.len,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.release(self.page);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Buffer({} bytes at page {} + {})",
            self.len, self.page, self.offset
        )
    }
}

/// The bytes of a window, for looking at. See [`Buffer::bytes`].
#[derive(Debug)]
pub struct Bytes<'a> {
    buffer: &'a Buffer,
    using: u32,
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the window lies within its block, which the buffer keeps from being freed; the
        // page's count keeps every writer in this process out while this lives. The arena's memory
        // is initialised (zeroes) from the start.
        unsafe { std::slice::from_raw_parts(self.buffer.start(), self.buffer.len()) }
    }
}

impl Drop for Bytes<'_> {
    fn drop(&mut self) {
        self.buffer.end_use(self.using);
    }
}

/// A window that is only looked at. See [`Buffer::freeze`].
#[derive(Debug)]
pub struct Frozen {
    buffer: Buffer,
    using: u32,
}

impl Deref for Frozen {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as for `Bytes`.
        unsafe { std::slice::from_raw_parts(self.buffer.start(), self.buffer.len()) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.buffer.end_use(self.using);
    }
}

/// The bytes of a window, for writing. See [`Buffer::bytes_mut`].
#[derive(Debug)]
pub struct BytesMut<'a> {
    buffer: &'a Buffer,
    using: u32,
}

impl Deref for BytesMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as for `Bytes`; the table of uses keeps everybody else from these bytes.
        unsafe { std::slice::from_raw_parts(self.buffer.start(), self.buffer.len()) }
    }
}

impl DerefMut for BytesMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only reference from this guard.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.start(), self.buffer.len()) }
    }
}

impl Drop for BytesMut<'_> {
    fn drop(&mut self) {
        self.buffer.end_use(self.using);
    }
}

/// Which way a device moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device writes into the buffer (a read command).
    FromDevice,
    /// The device reads from the buffer (a write command).
    ToDevice,
}

/// A window that a device is using. It belongs into the table of the operations in flight, which
/// drops it at the device's terminal completion and not before.
#[derive(Debug)]
pub struct DevicePin {
    buffer: Buffer,
    using: u32,
}

impl DevicePin {
    /// The address of the window's first byte, the same on every core.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.buffer.start()
    }

    /// The window's bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// True for a window without bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

impl Drop for DevicePin {
    fn drop(&mut self) {
        self.buffer.end_use(self.using);
    }
}

#[cfg(test)]
#[path = "buffer_tests.rs"]
mod tests;
