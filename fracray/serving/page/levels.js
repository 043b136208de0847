// A worker: halves a picture again and again, so that the page need not read all of a large one to show it small.

const SMALLEST = 512; // pixels of the longer side at which to stop

function halve({ data, width, height }) {
  const half = { width: Math.ceil(width / 2), height: Math.ceil(height / 2) };
  half.data = new Uint16Array(half.width * half.height);
  for (let row = 0, at = 0; row < half.height; row++) {
    const upper = 2 * row * width;
    const lower = Math.min(2 * row + 1, height - 1) * width;
    for (let column = 0; column < half.width; column++, at++) {
      const left = 2 * column;
      const right = Math.min(left + 1, width - 1);
      half.data[at] = (data[upper + left] + data[upper + right] + data[lower + left] + data[lower + right] + 2) >> 2;
    }
  }
  return half;
}

self.onmessage = ({ data: { buffer, width, height } }) => {
  const levels = [{ data: new Uint16Array(buffer), width, height }];
  while (Math.max(levels.at(-1).width, levels.at(-1).height) > SMALLEST) levels.push(halve(levels.at(-1)));
  self.postMessage(levels, levels.map((level) => level.data.buffer));
};
