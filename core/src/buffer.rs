//! Buffers of one core: a buddy allocator over a region of the arena, and counted windows on what
//! it hands out.
//!
//! Invariants:
//! - A block is free only when no [`Buffer`] and no [`DevicePin`] refers to it: memory that a
//!   device may still write is never handed out again.
//! - Safe code sees a block's bytes only while no device writes it ([`Buffer::bytes`]), and writes
//!   them only while nothing else looks at it ([`Buffer::bytes_mut`]). A violation is a bug in
//!   corebay and panics.
//! - Whoever waits for a large block is not overtaken by small ones, so it gets its block once
//!   enough of what is in flight has ended.
//! - Allocating and freeing take no memory and O(orders) time.

use std::{
    cell::{Cell, RefCell},
    fmt,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    rc::Rc,
};

use crate::{arena::Region, sync::FifoWait};

/// The smallest block, and the alignment of every block.
pub const BLOCK_BYTES_MIN: usize = 4096;

/// The largest block: the most that one command may transfer.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;

const ORDERS: usize = (BLOCK_BYTES_MAX / BLOCK_BYTES_MIN).ilog2() as usize + 1;
const NONE: u32 = u32::MAX;

/// The state of one page of [`BLOCK_BYTES_MIN`], and of the block that begins with it.
#[derive(Clone, Copy)]
struct Page {
    order: u8,
    /// Heads a block on a free list.
    free: bool,
    /// Somebody holds the block's bytes for writing.
    exclusive: bool,
    /// Those who hold the block's bytes for reading.
    shared: u16,
    /// Devices that read from the block.
    device_reads: u16,
    /// Devices that write into the block.
    device_writes: u16,
    handles: u32,
    previous: u32,
    next: u32,
}

const UNUSED: Page = Page {
    order: 0,
    free: false,
    exclusive: false,
    shared: 0,
    device_reads: 0,
    device_writes: 0,
    handles: 0,
    previous: NONE,
    next: NONE,
};

struct Buddies {
    pages: Box<[Page]>,
    heads: [u32; ORDERS],
    free_bytes: usize,
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

fn order_for(len: usize) -> usize {
    len.div_ceil(BLOCK_BYTES_MIN).next_power_of_two().ilog2() as usize
}

impl Buddies {
    fn over(bytes: usize) -> Self {
        let count = u32::try_from(bytes / BLOCK_BYTES_MIN).expect("fewer than 2^32 pages");
        let mut buddies = Self {
            pages: vec![UNUSED; count as usize].into(),
            heads: [NONE; ORDERS],
            free_bytes: 0,
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
        let found = (order..ORDERS).find(|&o| self.heads[o] != NONE)?;
        let page = self.heads[found];
        self.unlink(page);
        for smaller in (order..found).rev() {
            self.push_free(page + (1 << smaller), smaller);
        }
        let entry = &mut self.pages[page as usize];
        *entry = Page {
            order: order_byte(order),
            handles: 1,
            ..UNUSED
        };
        Some(page)
    }

    fn free(&mut self, page: u32) {
        let mut page = page;
        let mut order = self.pages[page as usize].order as usize;
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

    /// Looks at the bytes. Panics while a device or somebody else writes the block.
    #[must_use]
    pub fn bytes(&self) -> Bytes<'_> {
        self.pool.with_page(self.page, |page| {
            assert!(
                !page.exclusive && page.device_writes == 0,
                "the block is being written"
            );
            page.shared = page.shared.checked_add(1).expect("fewer than 2^16 readers");
        });
        Bytes { buffer: self }
    }

    /// Writes the bytes. Panics while a device uses the block or somebody else looks at it.
    #[must_use]
    pub fn bytes_mut(&mut self) -> BytesMut<'_> {
        self.pool.with_page(self.page, |page| {
            let used = page.shared + page.device_reads + page.device_writes;
            assert!(!page.exclusive && used == 0, "the block is in use");
            page.exclusive = true;
        });
        BytesMut { buffer: self }
    }

    /// Hands the window to a device: the block can be neither freed nor, where the device writes
    /// it, looked at until the pin is dropped.
    #[must_use]
    pub fn pin(&self, direction: Direction) -> DevicePin {
        self.pool.with_page(self.page, |page| {
            assert!(!page.exclusive, "the block is being written");
            match direction {
                Direction::FromDevice => {
                    assert!(page.shared == 0, "somebody looks at the block");
                    page.device_writes += 1;
                }
                Direction::ToDevice => page.device_reads += 1,
            }
        });
        DevicePin {
            buffer: self.clone(),
            direction,
        }
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
        self.buffer
            .pool
            .with_page(self.buffer.page, |page| page.shared -= 1);
    }
}

/// The bytes of a window, for writing. See [`Buffer::bytes_mut`].
#[derive(Debug)]
pub struct BytesMut<'a> {
    buffer: &'a Buffer,
}

impl Deref for BytesMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as for `Bytes`; the page's flag keeps everybody else out.
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
        self.buffer
            .pool
            .with_page(self.buffer.page, |page| page.exclusive = false);
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
    direction: Direction,
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
        let direction = self.direction;
        self.buffer
            .pool
            .with_page(self.buffer.page, |page| match direction {
                Direction::FromDevice => page.device_writes -= 1,
                Direction::ToDevice => page.device_reads -= 1,
            });
    }
}

#[cfg(test)]
#[path = "buffer_tests.rs"]
mod tests;
