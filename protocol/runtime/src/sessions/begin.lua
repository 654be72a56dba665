-- A worker holds a turn. ARGV: 5 job, 6 number as the job has it.
-- Returns {'ready', turns}, {'waits', {}} or {'moved', {number}}.
local job, number = ARGV[5], tonumber(ARGV[6])
local mine = parse(redis.call('HGET', open, job))
local over = tonumber(redis.call('ZSCORE', settled, job) or '')
if mine then
  bind(job, mine, 'c')
elseif over then
  mine = over
else
  local tail = field('tail')
  local place = '?' .. int(number)
  if number > tail then
    -- Redis lost these turns. Those before this one may be on their way too: their places are held for a while.
    for missing = math.max(tail + 1, number - open_max), number - 1 do
      bind('?' .. int(missing), missing, 'r')
    end
    mine = number
    set('tail', mine)
  elseif redis.call('HEXISTS', open, place) == 1 then
    redis.call('HDEL', open, place)
    mine = number
  else
    mine = tail + 1
    set('tail', mine)
  end
  bind(job, mine, 'c')
end
touch()
if mine ~= number then
  return {'moved', {int(mine)}}
end
if not over then
  local entries = redis.call('HGETALL', open)
  local waits = false
  for i = 1, #entries, 2 do
    local other, state, at = parse(entries[i + 1])
    if not other or other < mine then
      if void(other, state, at) then
        redis.call('HDEL', open, entries[i])
      else
        waits = true
      end
    end
  end
  if waits then
    return {'waits', {}}
  end
end
return {'ready', redis.call('ZRANGEBYSCORE', turns, '-inf', '(' .. int(mine))}
