//! Panics of this thread: the runtime swallows those of tasks, and none may happen.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// How many there were so far.
pub fn so_far() -> usize {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            // A thread that ends has nobody to tell.
            let _ = SEEN.try_with(|seen| seen.borrow_mut().push(panic.to_string()));
            usual(panic);
        }));
    });
    SEEN.with_borrow(Vec::len)
}

/// Those that came after the first `before`.
pub fn since(before: usize) -> Vec<String> {
    SEEN.with_borrow(|seen| seen[before..].to_vec())
}
