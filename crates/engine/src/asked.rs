//! The model that a request asks for.

use std::sync::{Arc, LazyLock};

type Read = Box<dyn FnOnce() -> Option<Box<str>> + Send>;

/// The model that a request asks for. It may be read late: only a claim needs it, a replay or a join
/// does not.
#[derive(Clone, Debug, Default)]
pub struct AskedModel(Option<Arc<LazyLock<Option<Box<str>>, Read>>>);

impl AskedModel {
    /// The model that `read` finds. It is called once at most, by the task that claims, and is not to
    /// wait for anything.
    pub fn read_late(read: impl FnOnce() -> Option<Box<str>> + Send + 'static) -> Self {
        Self(Some(Arc::new(LazyLock::new(Box::new(read)))))
    }

    /// The model; `None` where the request names none.
    pub fn get(&self) -> Option<&str> {
        let model = LazyLock::force(self.0.as_ref()?).as_deref();
        model.filter(|model| !model.is_empty())
    }
}

impl From<&str> for AskedModel {
    fn from(model: &str) -> Self {
        if model.is_empty() {
            return Self::default();
        }
        let model = Box::from(model);
        Self::read_late(|| Some(model))
    }
}
