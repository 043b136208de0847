// Sends the session's files to the server, a few at a time, however many were dropped. Knows no element of the page.

const AT_ONCE = 4; // the server may batch them, and others get their turn

export class Reading {
  /** predict(case_, signal): a promise of a row; done(case_): its row is there; changed(): the counts are others. */
  constructor(predict, done, changed) {
    Object.assign(this, { predict, done, changed });
    this.clear();
  }

  clear() {
    this.abort?.abort();
    this.abort = new AbortController();
    this.endGathering();
    this.stopped = false;
    this.waiting = [];
    this.running = 0;
    this.asked = 0;
    this.read = 0;
    this.failed = 0;
    this.skipped = 0;
  }

  add(case_) {
    this.waiting.push(case_);
    this.asked += 1;
    this.stopped = false;
    this.start();
    this.changed();
  }

  skip() {
    this.skipped += 1;
    this.changed();
  }

  /** Leave out what waits, and what of a folder has not been looked at; what is on its way comes. */
  stop() {
    this.endGathering();
    this.asked -= this.waiting.length;
    this.waiting = [];
    this.stopped = true;
    this.changed();
  }

  endGathering() {
    this.gathering?.abort();
    this.gathering = new AbortController(); // of the folders that are being looked through
  }

  get busy() {
    return this.running > 0 || this.waiting.length > 0;
  }

  start() {
    while (this.running < AT_ONCE && this.waiting.length) this.run(this.waiting.shift(), this.abort.signal);
  }

  async run(case_, signal) {
    this.running += 1;
    const failed = (error) => ({ path: case_.path, error: error.message });
    const row = await this.predict(case_, signal).catch(failed);
    if (signal.aborted) return; // and all counts are new
    case_.row = row;
    this.running -= 1;
    this.read += 1;
    this.failed += case_.row.error ? 1 : 0;
    this.done(case_);
    this.start();
    this.changed();
  }
}
