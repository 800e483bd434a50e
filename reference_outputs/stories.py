"""Short stories for children from a seeded grammar: the text the bundled checkpoint was trained on.

A model learns to look back only if the text rewards it, so every story fixes its facts at the start (who, what, which
colour, how many, why) and needs them again at the end. The notation, in the order it is resolved:

    a, b = x / y | v / w    a line that draws one pair for the rest of the story: here (a, b) is (x, y) or (v, w)
    ? a sentence            a line told in every second story
    [one|another]           a choice, which may contain choices
    {hero}                  a fact of this story

`python reference_outputs/stories.py --seed 0 --count 3` prints three of them.
"""

import argparse
import random
import re

# a name fixes the pronoun; a kind of animal, what it holds things with
NAMES = {
    "she": ["Lily", "Mia", "Rosa", "Tilly", "Nora", "Ada", "Poppy", "Wren", "Hazel", "Daisy", "Ivy", "Luna"],
    "he": ["Tom", "Ben", "Max", "Oscar", "Finn", "Leo", "Pip", "Hugo", "Sam", "Bruno", "Otto", "Milo"],
}
WORDS = {"she": ("she", "her", "her", "girl"), "he": ("he", "him", "his", "boy")}
KINDS = dict.fromkeys(["fox", "rabbit", "mouse", "bear", "cat", "squirrel", "hedgehog"], "paws")
KINDS |= {"duck": "wings", "owl": "wings", "hen": "wings", "frog": "hands", "child": "hands"}
ELDERS = {"Grandmother": "she", "Aunt Olive": "she", "Old Martha": "she", "Grandfather": "he", "Uncle Jack": "he"}

TRAITS = ["kind", "shy", "curious", "brave", "careful", "clever", "gentle", "merry", "quiet", "busy"]
COLOURS = ["red", "blue", "green", "yellow", "orange", "purple", "white", "pink", "brown", "silver"]
THINGS = ["kite", "ball", "hat", "scarf", "cup", "boat", "drum", "lamp", "bell"]
THINGS += ["book", "basket", "blanket", "whistle", "bucket", "ribbon", "button"]
FOODS = ["pears", "apples", "plums", "nuts", "berries", "cakes", "buns", "carrots", "cherries", "eggs"]
SPOTS = ["old oak", "bridge", "well", "pond", "hill", "barn", "garden gate", "stone wall", "mill", "hollow log"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

OPENING = """
home = by the sea | near the river | at the edge of the woods | on a green hill | in a small village | beside a farm
[[Once upon a time, there|Once upon a time, there|Long ago, there|there once] [was|lived] a [little |small |young \
|]{trait} {kind} named {hero}. {he} lived in a [tiny|cosy|little] house {home}.|Once upon a time, in a \
[tiny|cosy|little] house {home}, there lived a [little |small |]{kind} named {hero}.|{hero} was a {trait} {kind} who \
lived {home}.|{hero} the {kind} lived in a [tiny|cosy|little] house {home}. everyone said that {he} was very \
{trait}.|This is the story of {hero}, a {trait} little {kind} who lived {home}.]
[{his} best friend was a {friend_kind} [named|called] {friend}.|not far away lived {his} friend {friend}, a \
{friend_kind}.|{he} had a good friend, a {friend_trait} {friend_kind} named {friend}.]
? [{hero} and {friend} [played|walked|laughed] together [every day|whenever they could].|the two friends [liked|loved] \
to [sing songs|tell stories|look at the clouds] together.]
"""

WEATHER = """
sky, feel = the sun was warm / happy | it rained softly / sleepy | the wind was strong / restless \
| thick fog lay over the grass / lonely | the sky was clear and blue / cheerful | the nights were cold / quiet
? [for days, {sky}, and {hero} felt {feel}.|that week, {sky}. it made {hero} feel {feel}.]
"""

# one plot per string; what a line near the top says, a line near the end uses
PLOTS = [
    # lost and found: the place is told early
    """
[yesterday|the day before], {hero} had [rested|played|eaten lunch] by the {spot} with {his} {colour} {thing}.
[today|this morning], the {thing} was gone. {hero} [felt sad|began to cry|was worried], because {elder} had [given it \
to|made it for] {him}.
"[Have you seen|Did you see] my {colour} {thing}?" {he} asked {friend}.
"No," said {friend}, "but I will help you. Where [were you|did you go] yesterday?"
[{hero} [thought hard|closed {his} eyes and thought]. "I was by the {spot}!" {he} [said|cried].|"By the {spot}," said \
{hero}. "Let us go and look!"]
? on the way, they looked by the {spot2} too, but they found only [leaves|an old shoe|a feather] there.
they [ran|hurried|walked] to the {spot}, and there it was! the {colour} {thing} [lay in the grass|was safe and dry].
"Thank you, {friend}," said {hero}. [{he} held the {thing} [tight|close] all the way home.|from that day on, {he} \
always [remembered|looked] where {he} put {his} {thing}.]
""",
    # a gift that goes wrong and is put right
    """
mishap, cure = fell into the mud / washed it in the stream | tore on a nail / sewed it with a bit of string | got wet \
in the rain / dried it by the fire | lost its paint / painted it {colour} once more
tomorrow was {friend}'s birthday. {hero} [wanted to make|had to find] a gift, because {friend} was always kind to {him}.
{he} [worked all day|worked until it was dark] and made a {colour} {thing}.
but on the way to {friend}'s house, the {thing} {mishap}. "[My gift is spoiled|Now I have no gift]!" cried {hero}.
? {he} sat down by the {spot} and [cried|was sad|did not know what to do].
{elder} came [by|along the path] and said, "[Do not cry|Dry your eyes]. [A thing can be mended|We can put it right]."
so {hero} {cure}, and {elder} helped {him}. [soon it looked as good as new.|it took a long time.]
the next day, {friend} opened the gift. "A {colour} {thing}!" {friend_he} [cried|said]. "[I love it|It is just what I \
wanted]!"
? {hero} told {friend} that it {mishap}, and they both laughed.
[{friend} kept the {colour} {thing} for many years.|that night, {friend} put the {thing} next to {friend_his} bed.]
""",
    # sharing, with numbers that add up
    """
one day, {hero} [picked|found|was given] {n} {food}. {he} put them in {his} {colour} basket and [went home|sang a song].
by the {spot}, {he} met {friend}. {friend} looked [sad|tired|pale]. "What is wrong?" asked {hero}.
"I am [so|very] hungry," said {friend}. "I [had no breakfast|have not eaten all day]."
? {hero} looked at the {food}. {he} was hungry too, but {he} [thought of|cared about] {his} friend.
"Take {k} of my {food}," said {hero}. "Then I still have {left}."
{friend} [ate|took] the {k} {food} and felt [better|much better]. "I will not forget this," {friend_he} said.
[a week later|some days later|one cold day], it was {hero} who had [nothing to eat|an empty basket].
there was a knock at the door. it was {friend}, with {k} {food} in {friend_his} {friend_paws}!
"You gave me {k}, and now I give you {k}," said {friend}. [they sat down and ate together.|{hero} laughed and put them \
in the {colour} basket.]
? [sharing makes a friend.|and so nobody was hungry that day.]
""",
    # a storm breaks something, and a bed for the night is paid back
    """
part, patch = roof / planks | window / a board | door / nails and rope | chimney / stones and clay
[one night|one evening], a [great|terrible|big] storm came. the wind [howled|roared], and it broke {friend}'s {part}.
{friend} was [cold and wet|afraid] and ran to {hero}. "The storm broke my {part}! May I [come in|stay here]?" \
{friend_he} asked.
"Of course," said {hero}. {he} gave {friend} [a bowl of hot soup|a cup of warm milk] and {his} {colour} blanket.
in the morning, [the sun came out|the sky was blue again]. they went to look at the broken {part}.
"[We can mend it|Let us fix it]," said {hero}. {he} [brought|fetched] {patch}, and {elder} came with a hammer.
? they worked [all day|until noon|for hours], and then the {part} was [strong again|better than before].
"You gave me a warm bed and a new {part}," said {friend}. "[Thank you|How can I thank you]!"
? the next day, {friend} brought back the {colour} blanket with {n} {food} inside.
[now no storm could scare them.|when the next storm came, they listened to it together, safe and warm.]
""",
    # an accident, a lie, the truth
    """
{friend} had a {colour} {thing} that {friend_he} loved very much. one day, {hero} [asked to borrow|borrowed] it.
? "[Please be careful|Take good care of it]," said {friend}. "{elder} gave it to me."
but {hero} [ran too fast|was not careful] and [fell|tripped] by the {spot}. crack! the {thing} broke in two.
{hero} was [afraid|scared] that {friend} would be angry, so {he} hid the pieces [under {his} bed|in a box].
"Where is my {thing}?" asked {friend} [the next day|that evening]. "I do not know," said {hero}. {his} face felt hot.
? that night, {hero} could not sleep, because {he} had told a lie.
in the morning, {he} took the pieces to {friend}. "I broke your {thing}, and then I lied," {he} said. "I am sorry."
{friend} was quiet. then {friend_he} said, "I am [sad|sorry too], but I am glad that you told me the truth."
together they mended the {colour} {thing}[.|, and {elder} [showed them how|helped them].]
[{hero} held it again, and this time {he} was very careful.|and {hero} never lied to {friend_him} again.]
""",
    # fear with an ordinary cause
    """
noise, source = a scratching sound / a branch at the window | a loud knocking / a loose board | a strange moan / the \
wind in the chimney | tiny footsteps / a small mouse | a soft tapping / the rain on a tin cup
[every night|when it was dark], {hero} heard {noise}. {he} [pulled the blanket over {his} head|hid under the bed].
"[There is a monster|Something lives] in my house!" {he} told {friend} in the morning. "It makes {noise}."
? {friend} did not laugh. [everyone is afraid of something.|{friend_he} knew how it feels to be afraid.]
"I will stay with you tonight," said {friend}, "and I will bring my {colour} lamp."
that night, they sat [side by side|close together] and waited. [soon|at midnight] they heard {noise}.
{hero} wanted to [run away|hide], but {friend} [held {his} {paws}|said that {friend_he} was there].
{friend} lifted the {colour} lamp, and [they went closer and closer|step by step, they went to look].
it was not a monster at all. it was only {source}! "I was afraid of {source}!" said {hero} and [laughed|smiled].
[{friend} gave {hero} the {colour} lamp to keep, and {he} slept well every night.|after that, when {hero} heard \
{noise}, {he} only smiled and went back to sleep.]
""",
    # a race won by stopping
    """
trap, rescue = fell into a hole / let down a rope and pulled | got stuck in the mud / pushed and pulled | was caught \
in a thorn bush / bent the branches away | slipped into the stream / held out a long stick
every summer there was a race from the {spot} to the {spot2}. the prize was a {colour} {thing}.
{friend} was very fast. {hero} was slow, but {he} [wanted to try|practised every morning].
? "[I will win|I will be first]!" said {friend}. "[You are too slow|Nobody can catch me]."
"Ready, steady, go!" called {elder}. {friend} ran ahead, and {hero} was [soon alone|far behind].
but {friend} did not look where {friend_he} was going and {trap}. "Help!" {friend_he} cried.
{hero} [could have run past|saw that now {he} could win], but {he} stopped. {he} {rescue} until {friend} was free.
"Why did you stop?" asked {friend}. "[A friend is better than a prize|I did not want to win like that]," said {hero}.
they [walked|ran] to the {spot2} [together|side by side]. {elder} said, "Today we have two winners."
[{friend} gave the {colour} {thing} to {hero}, and {friend_he} never called {him} slow again.|they shared the {colour} \
{thing}: one day {hero} had it, and the next day {friend}.]
""",
    # seeds need time
    """
seeds, crop = beans / beans | pumpkin seeds / pumpkins | carrot seeds / carrots | sunflower seeds / sunflowers
{elder} gave {hero} {n} {seeds}. "[Put them in the earth|Plant them] and [wait|be patient]," {elder_he} said.
{hero} made {n} little holes by the {spot} and gave each one some water from a {colour} bucket.
the next day, {he} ran to look. nothing! "[They are asleep|They do not like me]," said {hero} [sadly|with a sigh].
{friend} [came to see|looked at the earth]. "[Sing to them|Water them] every day, and I will help you," {friend_he} \
said.
[the sun was hot|there was no rain], so every evening they carried the {colour} bucket from the well.
? one night it was cold, and {hero} covered the earth with leaves to keep it warm.
then, one morning, there was something green. {hero} counted: {n} small plants!
[all summer|week after week], they grew and grew, until there were {crop} everywhere.
? {hero} [took the biggest one|carried some {crop}] to {elder} and said, "Thank you. I was patient."
{he} gave {k} to {friend}, because {friend_he} had helped to carry the {colour} bucket.
""",
    # lost in bad weather, led home by a known thing
    """
dark, guide, sense = fog / the sound of a {colour} drum / heard | snow / the light of a {colour} lamp / saw | night / \
the song of a {colour} whistle / heard | mist / the ring of a {colour} bell / heard
before {hero} [left|went out], {friend} showed {him} {guide}. "If you are lost, remember this," {friend_he} said.
{hero} went to the {spot} to [pick|look for] {food}. {he} [went too far|forgot the time].
suddenly, the {dark} came. {he} could not see the path. "[Where is my house|Which way is home]?" {he} [asked|cried].
? {he} walked [left, and then right|in a circle] and came back to the {spot}. {he} was [cold|scared].
[at home|meanwhile], {friend} saw the {dark} and thought, "{hero} is still out there!"
then {hero} stood still. far away, {he} {sense} {guide}.
"That is {friend}!" {he} cried. step by step, {he} went [toward it|after it] through the {dark}.
at last, {he} [saw|reached] the door, and {friend} [hugged {him}|ran out to meet {him}].
[they shared the {food} by the fire.|{hero} had no {food}, but {he} did not mind.] "I will never forget {guide}," {he} \
said.
""",
    # a kindness returned in kind
    """
cure = hot soup | honey tea | warm bread | apple pie | sweet jam
one day, {friend} did not come out to play. {hero} [knocked on|went to] {friend_his} door. "I am ill," said {friend}.
{friend_he} was in bed, and {friend_his} head was hot. {hero} [felt sorry for|wanted to help] {friend_him}.
{he} ran home and made {cure}. {he} carried it past the {spot} in a {colour} bowl.
? [{he} sat by the bed and read a story.|{he} told {friend} a funny story.]
the next day, {friend} felt [a little better|better]. after {n} days, {friend_he} could run and jump again.
[then winter came.|some time later, it rained for {n} days.] {hero} got wet feet, and soon {he} [was ill too|had to \
stay in bed].
{he} heard steps outside. the door opened, and there stood {friend} with the {colour} bowl!
"I made {cure}," said {friend}, "because you made it for me."
{hero} [ate|finished] it all. "[It is the best in the world|I feel better already]," {he} said.
? {elder} looked in and smiled. "[Good friends are good doctors|You take care of each other]," {elder_he} said.
""",
    # a chain of trades: who holds what at the end
    """
{friend} was sad, because {friend_his} {thing} was [lost|broken]. {hero} wanted to get {friend_him} a new one, but \
{he} had only a {colour} {thing2}.
{he} went to the market by the {spot}. "[I need a {thing2}|What a fine {thing2}]," said the baker. "I will give you \
{n} {food} for it."
so the baker got the {thing2}, and {hero} got {n} {food}.
then {hero} met {elder}, who was [hungry|cooking for a party]. "[May I have|Will you give me] your {n} {food}?" asked \
{elder}. "I can give you a [warm coat|sack of flour|jar of honey] or a {thing}."
"A {thing}, please!" said {hero}. {elder} took the {food} and gave {him} a {colour2} {thing}.
? {hero} [ran|hurried|skipped] to {friend}'s house. "[Close your eyes|Hold out your {friend_paws}]," {he} said.
{friend} saw the {colour2} {thing}. "Is it for me?" {friend_he} asked. "Where is your {colour} {thing2}?"
"The baker has it, and {elder} has the {food}," said {hero}, "and you have a {thing}."
? [{friend} hugged {him} for a long time.|they played with the {colour2} {thing} all day.]
""",
    # a found key belongs to someone
    """
by the {spot}, {hero} saw something [shine|in the grass]. it was a {colour} key.
"What does it open?" {he} [asked|wondered].
? {he} tried it in {his} own door, but it did not fit.
{he} showed it to {friend}. "[It is not mine|It is not my key]," said {friend}. "Let us ask."
? "[We could keep it|Maybe we can keep it]," said {friend}. "No," said {hero}, "someone is looking for it."
at last, they came to {elder}. {elder_he} was [sitting on the step|looking for something]. "I have lost my {colour} \
key!" {elder_he} said.
"Here it is!" said {hero}. "I found it by the {spot}."
{elder} took the key and opened a [big|small|heavy] box. inside there was a {colour2} {thing}.
"I [had this|played with this] when I was little," said {elder}. "[Now it is yours|I give it to you]."
[{hero} and {friend} carried the {colour2} {thing} home together.|{hero} said thank you, and {he} let {friend} hold \
the {colour2} {thing} first.]
""",
    # alone with one idea, done with two
    """
block, idea = the stream was too wide / put a long log across it | a big tree lay on the path / cut the branches and \
rolled it away | the gate was stuck / oiled it and pushed | a stone blocked the way / lifted it with a strong stick
{elder} was waiting on the other side of the valley. {hero} wanted to bring {elder_him} {n} {food} and a {colour} \
{thing}.
but by the {spot}, {block}. {hero} [pushed and pulled|tried and tried], but {he} was too [small|weak] alone.
{he} sat down. "[I have to go back|{elder} will be so sad]," {he} said.
just then, {friend} came [along the road|whistling]. "Why are you sad?" {friend_he} asked.
"Because {block}," said {hero}. "[Then we do it together|Let us try it together]!" said {friend}. so they {idea}.
? it was hard work, and the {colour} {thing} [almost fell|got a little dusty], but they did not stop.
soon the way was free. {hero} [ran|hurried] on to {elder}. "You are late," {elder_he} said. "What happened?"
"At first, {block}," said {hero}, "but {friend} helped me." {he} gave {elder_him} the {n} {food} and the {colour} \
{thing}.
? {elder} [gave {him} a kiss|smiled] and kept [two|one] of the {food} for {friend}.
""",
    # the new neighbour
    """
one day, a new neighbour came to live by the {spot}. it was a little {guest_kind} named {guest}.
{guest} sat all alone with a {colour} {thing} and did not [speak|smile]. "[Why is the {guest_kind} so sad|What is the \
matter]?" asked {friend}.
"Maybe nobody has said hello," said {hero}.
? {he} remembered how it felt to be lonely.
so {hero} and {friend} [baked a cake|picked flowers|took {n} {food}] and went to the {spot}. "Hello, {guest}," said \
{hero}. "Do you want to play with us?"
{guest} looked [up|down]. "[At my old home I had friends|I know nobody here]," {guest_he} said. "I have only my \
{thing}."
"[Now you have us|We can be your friends]," said {friend}. "Will you show us your {thing}?"
{guest} held out the {colour} {thing}.
? [they took turns with it.|{guest_he} showed them a trick, and they laughed.]
they played until the [sun went down|stars came out]. {guest} was not sad any more.
[every day after that, the three of them met by the {spot}.|"See you tomorrow!" called {guest}, and {guest_he} waved \
the {colour} {thing}.]
""",
    # a friend who leaves and returns
    """
in the autumn, {friend} had to go [away|on a long journey] to help {elder}. "[When will|Will] you come back?" asked \
{hero}.
"In the spring," said {friend}. "Keep my {colour} {thing} until then."
{hero} put the {thing} [by the window|on a shelf|next to {his} bed]. every evening, {he} thought of {friend}.
winter was [long|cold and white].
? snow lay on the {spot}, and {hero} [counted the days|felt lonely].
one day, {guest} the {guest_kind} came and said, "I like that {thing}! I will give you {n} {food} for it."
{hero} was hungry, but {he} [shook {his} head|said no]. "It is not mine to give. It is {friend}'s."
at last, the snow melted, and there were flowers by the {spot}. {hero} heard a voice that {he} knew.
"{hero}! I am home!" called {friend}. {hero} ran out with the {colour} {thing} in {his} {paws}.
"You kept it [safe|all winter]!" said {friend}.
? "I promised," said {hero}.
[then {friend} told {him} all about {elder}.|and they sat by the {spot} and talked until it was dark.]
""",
    # stuck in a tree: two tries, and the helper fits
    """
helper, way = bird / flew up | squirrel / climbed the trunk | tall giraffe / stretched its long neck | monkey / swung \
from branch to branch
{hero} was playing with {his} {colour} {thing} when the wind took it. up it went, into the tall tree by the {spot}.
{he} jumped, but {he} could not reach it.
? {he} [threw a stick|shook the tree], but only leaves fell down.
{friend} came and [brought|fetched] a ladder. {friend_he} climbed up, but the ladder was too short.
? "[My poor {thing}|What shall we do]!" said {hero}. {he} was close to tears.
"What is the matter?" asked a {helper}. "My {colour} {thing} is in the tree," said {hero}.
the {helper} {way}, took the {thing}, and dropped it [softly|right] into {hero}'s {paws}.
"How can I thank you?" asked {hero}. "I [like|love] {food}," said the {helper}.
so {hero} and {friend} came back [the next day|in the evening] with {n} {food}, and the {helper} ate every one.
[ever since then|from then on], when {hero} plays with the {colour} {thing}, the {helper} [watches from|sits in] the \
tree.
""",
    # the thief was hungry
    """
thief, home2 = a tiny mouse / a hole in the wall | a young crow / a nest without a roof | a thin kitten / an old box | \
a baby goat / the cold barn
{hero} kept {n} {food} in a {colour} basket. in the morning, there were only {left}. "Now {k} are gone!" {he} cried.
"[Who was it|Was it you]?" {he} asked {friend}. "I would never take your {food}," said {friend} [sadly|softly].
? "[I am sorry|Forgive me]," said {hero}. "Will you help me to [find|catch] the thief?"
that night, they [hid behind the {spot}|sat in the dark] and watched the {colour} basket.
then something moved. it was {thief}! "Stop!" called {hero}. "Why do you take my {food}?"
the thief began to cry. "I live in {home2}," it said, "and I [have nothing|am hungry]."
{hero} was not angry any more. "You only had to ask," {he} said, and {he} gave away the last {left} {food} too.
? "And I will bring you [a blanket|some straw]," said {friend}, "because {home2} is too cold to live in."
[soon the {colour} basket was full again, for now three of them filled it.|nobody ever stole from {hero} again, and \
nobody had to.]
""",
    # market day: the wish that waits
    """
{hero} had saved {n} coins. {he} wanted to buy a {colour} {thing} at the market, and it cost {n} coins.
{he} told {elder} about it and ran [down the road|past the {spot}] with the coins in {his} {paws}.
[on the way|near the market], {he} saw {friend}, who was crying. "I lost my {thing2}," said {friend}.
at the market, there was a {colour2} {thing2} too. it also cost {n} coins.
? {hero} [thought for a while|took a deep breath].
then {he} gave the {n} coins for the {colour2} {thing2}. "This is for you," {he} told {friend}.
"But you wanted the {thing}!" {friend_he} said. "[The {thing} can wait|I can save again]," said {hero}.
[a week later|the next morning], {elder} put a [box|parcel] by {hero}'s door. inside was the {colour} {thing}!
"For {hero}, who gave away {n} coins," said the note.
so {friend} had the {colour2} {thing2}, and {hero} had the {colour} {thing} after all.
""",
]


def cast(role, name, pronoun, kind, rng):
    """The facts of one character, each under the name of its role.  -> {"friend": "Mia", "friend_he": "she"...}"""
    words = dict(zip(("he", "him", "his", "child"), WORDS[pronoun], strict=True))
    words |= {"kind": words.get(kind, kind), "paws": KINDS[kind], "trait": rng.choice(TRAITS)}
    return {role: name} | {f"{role}_{key}": word for key, word in words.items()}


def draw_facts(rng):
    """Everything a story may refer to, fixed before its first word."""
    pronouns = rng.sample(["she", "he"], 2)  # hero and friend differ, so that every he and she has one reader
    pronouns.append(rng.choice(pronouns))
    kinds = rng.sample(sorted(KINDS), 3)
    facts, names = {}, {pronoun: rng.sample(group, 2) for pronoun, group in NAMES.items()}
    for role, pronoun, kind in zip(("hero", "friend", "guest"), pronouns, kinds, strict=True):
        facts |= cast(role, names[pronoun].pop(), pronoun, kind, rng)
    elder, pronoun = rng.choice(sorted(ELDERS.items()))
    facts |= cast("elder", elder, pronoun, "child", rng) | {"food": rng.choice(FOODS)}
    for key, table in (("colour", COLOURS), ("thing", THINGS), ("spot", SPOTS)):
        facts[key], facts[key + "2"] = rng.sample(table, 2)
    n = rng.randint(4, 10)
    k = rng.randint(2, n - 2)
    short = {key: facts[f"hero_{key}"] for key in ("he", "him", "his", "kind", "trait", "paws")}
    return facts | short | {"n": NUMBERS[n], "k": NUMBERS[k], "left": NUMBERS[n - k]}


def render(template, facts, rng):
    """Choices from the inside out, then facts."""
    while "[" in template:
        template = re.sub(r"\[([^\[\]]*)\]", lambda found: rng.choice(found[1].split("|")), template)
    return template.format_map(facts).strip()


def tell(script, facts, rng):
    """One script, line by line; a draw adds its facts for the lines below.  -> sentences"""
    lines = []
    for line in script.strip().splitlines():
        if " = " in line:
            keys, options = line.split(" = ")
            values = [render(value, facts, rng) for value in rng.choice(options.split(" | ")).split(" / ")]
            facts |= dict(zip(keys.split(", "), values, strict=True))
        elif not line.startswith("? ") or rng.random() < 0.5:
            line = render(line.removeprefix("? "), facts, rng)
            lines.append(line[0].upper() + line[1:])
    return lines


def polish(text):
    """Articles, spaces and capitals, which no template has to think about."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", " ".join(text.split()))
    inside = r'([.!?] |[.]" )([a-z])'  # not after !" or ?", where a sentence may go on: "Stop!" she said.
    return re.sub(inside, lambda found: found[1] + found[2].upper(), text)


def story(rng):
    """One story, told from facts that were fixed before it began."""
    facts = draw_facts(rng)
    scripts = OPENING, WEATHER, rng.choice(PLOTS)
    return polish(" ".join(line for script in scripts for line in tell(script, facts, rng)))


def stories(count, seed):
    """The same count and seed give the same stories, on every machine."""
    rng = random.Random(seed)
    return [story(rng) for _ in range(count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=3)
    args = parser.parse_args()
    print("\n\n".join(stories(args.count, args.seed)))
