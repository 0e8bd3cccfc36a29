// What is asked again and again, while somebody looks.

/**
 * Calls `task` now, and again so many milliseconds after each time that it ended (`every` may be a function), until the
 * signal. A page in the background asks nothing. Returns a function that asks at once.
 */
export function poll(task, every, signal) {
  let timer = null;
  let running = false;
  let again = false;
  const wait = () => (typeof every === "function" ? every() : every);
  const stopped = () => signal.aborted;
  async function run() {
    clearTimeout(timer);
    if (stopped() || document.hidden) return;
    if (running) {
      again = true;
      return;
    }
    running = true;
    try {
      await task();
    } catch (error) {
      // Tasks tell their own errors; one that got away must not end the asking.
      if (error.name !== "AbortError") console.error(error);
    } finally {
      running = false;
    }
    if (stopped()) return;
    if (again) {
      again = false;
      run();
    } else {
      timer = setTimeout(run, wait());
    }
  }
  document.addEventListener("visibilitychange", run, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  run();
  return run;
}
