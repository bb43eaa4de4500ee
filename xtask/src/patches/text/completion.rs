
    /// Wait for completion of a task for a limited time.
    ///
    /// This method is not interruptible. It returns whether the completion is done. A `timeout`
    /// that is not positive only checks that.
    ///
    /// See also [`Completion::complete_all`].
    #[inline]
    pub fn wait_for_completion_timeout(&self, timeout: Delta) -> bool {
        // SAFETY: `self.as_raw()` is a pointer to a valid `struct completion`.
        let left = unsafe {
            bindings::wait_for_completion_timeout(self.as_raw(), delta_to_jiffies(timeout))
        };
        left != 0
    }
