-- A turn is over. ARGV: 5 job, 6 number, 7 turn, empty where it leaves no trace, 8 most turns, 9 most bytes,
-- 10 how many settled jobs are known. Returns 1, or 0 where it was settled before.
local job, number, turn = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local turns_max, bytes_max, known_max = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
redis.call('HDEL', open, job, '?' .. int(number))
if redis.call('ZSCORE', settled, job) or number <= field('floor') then
  touch()
  return 0
end
redis.call('ZADD', settled, int(number), job)
if number > field('tail') then
  set('tail', number)
end

local extra = redis.call('ZCARD', settled) - known_max
if extra > 0 then
  local last = redis.call('ZRANGE', settled, extra - 1, extra - 1, 'WITHSCORES')
  set('floor', tonumber(last[2]))
  redis.call('ZREMRANGEBYRANK', settled, 0, extra - 1)
end

if turn ~= '' and number > field('forgotten') then
  local bytes = field('bytes')
  if redis.call('ZADD', turns, int(number), turn) == 1 then
    bytes = bytes + #turn
  end
  local count = redis.call('ZCARD', turns)
  while count > turns_max or (bytes > bytes_max and count > 0) do
    bytes = bytes - #redis.call('ZPOPMIN', turns)[1]
    count = count - 1
  end
  set('bytes', bytes)
end
touch()
return 1
