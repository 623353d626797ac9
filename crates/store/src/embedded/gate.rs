//! Waiting for a commit, with few wake-ups.
//!
//! A commit makes many writes durable at once, and all who wait for them sit on a few threads. To
//! wake each of them from the commit thread would cost a system call apiece, so the commit thread
//! wakes one waiter of each thread, the first, and that one wakes the others from its own thread,
//! where a wake-up is a push onto a queue.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak, atomic},
    task::{Context, Poll, Waker},
};

use super::sync::{AtomicBool, AtomicU64, Mutex, Ordering, thread_local};

/// What everybody waits for: the log is durable up to some position, or broken.
pub struct Gate {
    /// Tells the gates of one process apart.
    number: u64,
    /// Everything that ends at or before this position is durable.
    durable: AtomicU64,
    is_broken: AtomicBool,
    broken: Mutex<Option<Arc<str>>>,
    threads: Mutex<Vec<Weak<Threadful>>>,
}

/// The waiters of one thread, with the position that each waits for.
#[derive(Default)]
struct Threadful {
    waiting: Mutex<Vec<Waiting>>,
}

struct Waiting {
    ticket: u64,
    position: u64,
    waker: Waker,
}

thread_local! {
    static THREADS: RefCell<Vec<(u64, Arc<Threadful>)>> = RefCell::default();
}

/// Numbers gates and waiters.
static NUMBERS: atomic::AtomicU64 = atomic::AtomicU64::new(1);

fn next_number() -> u64 {
    NUMBERS.fetch_add(1, atomic::Ordering::Relaxed)
}

impl Gate {
    /// A gate that is open up to `position`.
    pub fn open_to(position: u64) -> Arc<Self> {
        Arc::new(Self {
            number: next_number(),
            durable: AtomicU64::new(position),
            is_broken: AtomicBool::new(false),
            broken: Mutex::default(),
            threads: Mutex::default(),
        })
    }

    /// The position up to which all is durable.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Why nothing more will become durable, if that is so.
    pub fn broken(&self) -> Option<Arc<str>> {
        if self.is_broken.load(Ordering::Acquire) {
            self.broken.lock().clone()
        } else {
            None
        }
    }

    /// Opens the gate up to `position`.
    pub fn open(&self, position: u64) {
        self.durable.store(position, Ordering::Release);
        self.wake_leaders();
    }

    /// Breaks the gate: all who wait, now and later, for what is not yet durable are told so.
    pub fn break_off(&self, why: &str) {
        self.broken.lock().get_or_insert_with(|| why.into());
        self.is_broken.store(true, Ordering::Release);
        self.wake_leaders();
    }

    /// Waits until all up to `position` is durable.
    pub fn wait(self: &Arc<Self>, position: u64) -> Wait {
        Wait {
            gate: self.clone(),
            position,
            registered: None,
        }
    }

    fn wake_leaders(&self) {
        self.threads.lock().retain(|thread| {
            let Some(thread) = thread.upgrade() else {
                return false;
            };
            self.wake_some(&thread, 1);
            true
        });
    }

    fn wake_some(&self, thread: &Threadful, most: usize) {
        let durable = if self.is_broken.load(Ordering::Acquire) {
            u64::MAX
        } else {
            self.durable()
        };
        let mut ready = Vec::new();
        {
            let mut waiting = thread.waiting.lock();
            let mut at = 0;
            while at < waiting.len() && ready.len() < most {
                if waiting[at].position <= durable {
                    ready.push(waiting.swap_remove(at).waker);
                } else {
                    at += 1;
                }
            }
        }
        // Outside the lock: a waker may drop a task, and with it a waiter of this very thread.
        for waker in ready {
            waker.wake();
        }
    }

    fn this_thread(&self) -> Arc<Threadful> {
        THREADS.with(|threads| {
            let mut threads = threads.borrow_mut();
            if let Some((_, thread)) = threads.iter().find(|(number, _)| *number == self.number) {
                return thread.clone();
            }
            // The list of a gate that is gone is held by nobody else.
            threads.retain(|(_, thread)| Arc::weak_count(thread) > 0);
            let thread = Arc::new(Threadful::default());
            self.threads.lock().push(Arc::downgrade(&thread));
            threads.push((self.number, thread.clone()));
            thread
        })
    }
}

/// A wait for durability; see [`Gate::wait`].
pub struct Wait {
    gate: Arc<Gate>,
    position: u64,
    registered: Option<(u64, Arc<Threadful>)>,
}

impl Future for Wait {
    type Output = Result<(), Arc<str>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(result) = this.result() {
            this.hand_on();
            return Poll::Ready(result);
        }
        this.register(cx.waker());
        // The gate may have opened between the look and the registration.
        match this.result() {
            Some(result) => {
                this.hand_on();
                Poll::Ready(result)
            }
            None => Poll::Pending,
        }
    }
}

impl Wait {
    fn result(&self) -> Option<Result<(), Arc<str>>> {
        if self.gate.durable() >= self.position {
            return Some(Ok(()));
        }
        self.gate.broken().map(Err)
    }

    fn register(&mut self, waker: &Waker) {
        if let Some((ticket, thread)) = &self.registered {
            let mut waiting = thread.waiting.lock();
            if let Some(mine) = waiting.iter_mut().find(|waiting| waiting.ticket == *ticket) {
                mine.waker.clone_from(waker);
                return;
            }
        }
        let ticket = next_number();
        let thread = self.gate.this_thread();
        thread.waiting.lock().push(Waiting {
            ticket,
            position: self.position,
            waker: waker.clone(),
        });
        self.registered = Some((ticket, thread));
    }

    /// Wakes the others of the thread whose turn it is: this waiter may have been the one that the
    /// commit thread woke for all of them.
    fn hand_on(&mut self) {
        let Some((ticket, thread)) = self.registered.take() else {
            return;
        };
        thread
            .waiting
            .lock()
            .retain(|waiting| waiting.ticket != ticket);
        self.gate.wake_some(&thread, usize::MAX);
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.hand_on();
    }
}
