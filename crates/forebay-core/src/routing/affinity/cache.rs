//! A model of one backend's prefix cache: an LRU list in which neighbours share a bucket. A block is stamped with the epoch in
//! which it was last sent. Each bucket counts the tokens whose last stamp falls into its epochs. While all buckets together
//! hold more than the KV cache does, the oldest bucket is evicted, and every stamp up to its end is void. So a touch costs a
//! subtraction and an addition, and no list is walked.
//!
//! Hot path: constant time for each block; no allocation.

use crate::clock::Time;
use crate::units::BackendId;

/// Capacity of a KV cache that is not known, in tokens: a 7B model on 24 GB has so much.
pub const UNKNOWN_CAPACITY: u64 = 100_000;

/// Share of the capacity that may have been used since a block was, before the block may be gone. Between `WHOLE` and `GONE` a
/// claim shrinks: the model is of estimated tokens, and it knows nothing of other clients. A claim on what is gone costs
/// little, since the old home is as good as any; to overlook what is there makes a copy, which evicts something else.
const WHOLE: f64 = 0.8;
/// See `WHOLE`.
const GONE: f64 = 1.3;
/// Share by which one answer moves the estimate of a capacity that the engine does not tell.
const LEARN: f64 = 0.5;
/// Buckets of one cache. Where there would be more, the two neighbours with the fewest tokens become one, so that a bucket has
/// a twentieth of the cache at most, or one request's tokens, and so much is the error.
const BUCKETS: usize = 64;
/// A bucket that took in this share of the cache is full, and the next epoch begins.
const EPOCH: f64 = 1.0 / 48.0;

#[derive(Clone, Copy, Debug, Default)]
struct AgeBucket {
    /// Its last epoch.
    last: u32,
    tokens: f64,
    /// Time at which that began.
    at: Time,
    /// Tokens used since its blocks were, on average.
    depth: f64,
    /// The share of its blocks that should still be there.
    kept: f32,
}

/// The effect of sending a block again on the cache that gets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touch {
    /// Tokens that move up, with the epoch that they come from.
    pub(super) moved: Option<(u32, f64)>,
    /// Tokens that are taken in.
    pub(super) taken: f64,
}

/// The effect of a request's blocks together. Blocks in a row mostly are of one epoch, and so move up at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Touched {
    epoch: u32,
    moving: f64,
    taken: f64,
}

/// The expected content of one backend's prefix cache.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    /// The backend; that of nobody while the slot is free.
    pub(super) backend: BackendId,
    /// Tokens of the prompt at hand that it was sent, and the epoch of the last block of them.
    pub(super) reached: (u32, u32),
    buckets: [AgeBucket; BUCKETS],
    len: usize,
    /// The depths of the buckets are as of now. They are reckoned when somebody asks: a dispatch without a known prefix does not.
    reckoned: bool,
    /// The first epoch whose blocks are still there.
    alive_from: u32,
    now: u32,
    tokens: f64,
    capacity: f64,
    /// The engine says what the capacity is.
    told: bool,
    generated: u64,
}

impl Cache {
    pub(super) const fn empty() -> Cache {
        Cache {
            backend: BackendId(u32::MAX),
            reached: (0, 0),
            buckets: [AgeBucket { last: 0, tokens: 0.0, at: Time::ZERO, depth: 0.0, kept: 1.0 }; BUCKETS],
            len: 0,
            reckoned: true,
            alive_from: 1,
            now: 0,
            tokens: 0.0,
            capacity: UNKNOWN_CAPACITY as f64,
            told: false,
            generated: 0,
        }
    }

    /// The capacity of the KV cache, in tokens, as the engine says. Evicts what is over it.
    pub(super) fn set_capacity(&mut self, tokens: u64) {
        (self.capacity, self.told) = (tokens.max(1) as f64, true);
        self.evict();
    }

    /// The capacity of the KV cache in tokens, or what it is taken for.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// Forgets the backend: its slot is free. Stamps of its blocks stay void.
    pub(super) fn release(&mut self) {
        *self = Cache { now: self.now, alive_from: self.now + 1, ..Cache::empty() };
    }

    /// The backend whose cache it is from now on. What another one was sent is void.
    #[inline]
    pub(super) fn serve(&mut self, backend: BackendId) {
        if self.backend != backend {
            self.clear();
            (self.backend, self.generated) = (backend, 0);
        }
    }

    /// Forgets all blocks: the engine is another.
    pub(super) fn clear(&mut self) {
        self.alive_from = self.now + 1;
        self.len = 0;
        self.tokens = 0.0;
    }

    /// Returns whether a block stamped with this epoch should still be there.
    #[inline]
    pub(super) fn keeps(&self, epoch: u32) -> bool {
        epoch >= self.alive_from
    }

    /// A request goes to the backend, which has generated so many tokens in all.
    pub(super) fn begin(&mut self, generated: u64, now: Time) {
        // An epoch is a share of the cache, not a time: eviction follows what was used since, not the clock.
        let full = self.len > 0 && self.buckets[self.len - 1].tokens >= EPOCH * self.capacity;
        if self.len == 0 || full {
            self.now += 1;
            // The two neighbours with the fewest tokens become one, so that the fewest blocks have a vaguer age.
            if self.len == BUCKETS {
                self.merge();
            }
            self.buckets[self.len] = AgeBucket { last: self.now, tokens: 0.0, at: now, depth: 0.0, kept: 1.0 };
            self.len += 1;
        }
        // Answers fill the cache as prompts do. Their tokens are counted at the next request, which is early enough
        // to evict.
        let new = generated.saturating_sub(std::mem::replace(&mut self.generated, generated));
        self.take_in(new as f64);
    }

    /// The share of the blocks of this epoch that should still be there, and how many tokens were used since they were.
    pub(super) fn kept(&mut self, epoch: u32) -> (f32, f64) {
        if !self.reckoned {
            self.reckon();
        }
        let held = &self.buckets[..self.len];
        let bucket = held.get(held.partition_point(|bucket| bucket.last < epoch));
        bucket.map_or((0.0, 0.0), |bucket| (bucket.kept, bucket.depth))
    }

    /// An answer said whether blocks were found after which so many tokens had been used. Where the engine does not say how
    /// large its KV cache is, this tells: it is smaller than the depth of what was gone, and larger than that of what was there.
    pub(super) fn learn(&mut self, depth: f64, found: bool) {
        let wrong = if found { depth > WHOLE * self.capacity } else { depth < self.capacity };
        if wrong && !self.told {
            let target = if found { depth / WHOLE } else { depth };
            self.capacity = (self.capacity + LEARN * (target - self.capacity)).max(1.0);
        }
    }

    /// The epoch to stamp blocks with.
    #[inline]
    pub(super) fn epoch(&self) -> u32 {
        self.now
    }

    /// Takes in tokens: of a block that was not there, of a prompt's end, of an answer.
    #[inline]
    pub(super) fn take_in(&mut self, tokens: f64) {
        self.buckets[self.len - 1].tokens += tokens;
        self.tokens += tokens;
    }

    /// A block of the given epoch is used again: it moves to the present one.
    #[inline]
    pub(super) fn move_up(&mut self, epoch: u32, tokens: f64) {
        let held = &mut self.buckets[..self.len];
        let place = held.partition_point(|bucket| bucket.last < epoch);
        let Some(bucket) = held.get_mut(place) else { return };
        let moved = tokens.min(bucket.tokens);
        bucket.tokens -= moved;
        self.tokens -= moved;
        self.take_in(tokens);
    }

    /// Adds a block to what is touched.
    #[inline]
    pub(super) fn touch(&mut self, touched: &mut Touched, touch: Touch) {
        touched.taken += touch.taken;
        let Some((epoch, tokens)) = touch.moved else { return };
        if epoch != touched.epoch && touched.moving > 0.0 {
            self.move_up(touched.epoch, std::mem::take(&mut touched.moving));
        }
        (touched.epoch, touched.moving) = (epoch, touched.moving + tokens);
    }

    /// Takes it all down.
    pub(super) fn settle(&mut self, touched: Touched) {
        if touched.moving > 0.0 {
            self.move_up(touched.epoch, touched.moving);
        }
        self.take_in(touched.taken);
    }

    /// The share of the cache that is in use.
    pub(super) fn fill(&self) -> f64 {
        (self.tokens / self.capacity).min(1.0)
    }

    /// For how many seconds that was not used which so many new tokens would evict; infinite where they evict nothing.
    pub(super) fn age(&self, tokens: u32, now: Time) -> f64 {
        let mut left = self.capacity - f64::from(tokens);
        // From the newest: what fits into the capacity beside the new tokens stays, and the first bucket that does
        // not is the age.
        for bucket in self.buckets[..self.len].iter().rev() {
            left -= bucket.tokens;
            if left <= 0.0 {
                return now.secs_since(bucket.at);
            }
        }
        f64::INFINITY
    }

    /// Evicts what is over the capacity, the longest unused first.
    pub(super) fn evict(&mut self) {
        let mut gone = 0;
        while self.tokens > GONE * self.capacity && gone + 1 < self.len {
            self.tokens -= self.buckets[gone].tokens;
            // Blocks are not looked for: one stamped with an earlier epoch counts as gone wherever it is met.
            self.alive_from = self.buckets[gone].last + 1;
            gone += 1;
        }
        if gone > 0 {
            self.buckets.copy_within(gone..self.len, 0);
            self.len -= gone;
        }
        self.reckoned = false;
    }

    /// Finds how deep each bucket lies under what was used since, and how much of it should still be there.
    fn reckon(&mut self) {
        let mut newer = 0.0;
        let (whole, gone_at) = (WHOLE * self.capacity, GONE * self.capacity);
        for bucket in self.buckets[..self.len].iter_mut().rev() {
            // A block lies somewhere in its bucket: half of it was used after the block, on average.
            bucket.depth = newer + 0.5 * bucket.tokens;
            bucket.kept = ((gone_at - bucket.depth) / (gone_at - whole).max(1.0)).clamp(0.0, 1.0) as f32;
            newer += bucket.tokens;
        }
        self.reckoned = true;
    }

    fn merge(&mut self) {
        let sum = |place: &usize| self.buckets[*place].tokens + self.buckets[*place + 1].tokens;
        let least = (0..self.len - 2).min_by(|a, b| sum(a).total_cmp(&sum(b))).unwrap_or(0);
        self.buckets[least + 1].tokens += self.buckets[least].tokens;
        self.buckets[least + 1].at = self.buckets[least].at;
        self.buckets.copy_within(least + 1..self.len, least);
        self.len -= 1;
    }
}
